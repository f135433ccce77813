"""The words around a picture. Every output format takes them from here."""

from __future__ import annotations

from attnlens.render.scene import Scene
from attnlens.render.text.numbers import runs


def headline(scene: Scene) -> str:
    """Who looks, and what it says: `token 41 “·Bob” (generated 3)   predicts “'s” (0.930)`."""
    if scene.headline or scene.query is None:
        return scene.headline
    generated = scene.query - scene.subject.n_prompt
    place = f"generated {generated}" if generated >= 0 else "prompt"
    parts = [f"token {scene.query} “{scene.token}” ({place})"]
    if scene.predicted is not None:
        parts.append(f"predicts “{scene.predicted.text}” ({scene.predicted.probability:.3f})")
    if scene.next is not None:
        parts.append(f"next came “{scene.next}”")
    return "   ".join(parts)


def details(scene: Scene) -> tuple[str, ...]:
    """Where it comes from and what is drawn, most telling first."""
    subject = scene.subject
    if scene.details:
        lines = list(scene.details)
    else:
        last = "" if scene.query is None else f" of 0–{scene.query}"
        lines = [
            subject.model,
            f"capture {subject.capture}" + ("" if subject.status == "complete" else f" ({subject.status})"),
            f"attention: {subject.reduction}",
            f"tokens {runs(scene.columns, '–', ', ')}{last}",
        ]
    lines += [f"scale: {scene.scale_name}", f"text: {scene.text_name}"]
    if any(column in subject.special for column in scene.columns):
        lines.append("* special token")
    if subject.lens_absent is not None:
        lines.append(f"no lens: {subject.lens_absent}")
    return tuple(lines)
