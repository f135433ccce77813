"""The CPU stage: store reader → Scene (plain arrays and strings) → bytes of a picture. Never imports torch."""
