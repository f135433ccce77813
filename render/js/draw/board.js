// A canvas of cells that can be panned, zoomed, pointed at and walked through with the keyboard.

import { THEMES } from "../contract.js";
import { css } from "./colours.js";
import { paintCells, paintNames, shown, STRIP } from "./paint.js";

const WIDEST = 220;
const BELOW = 34;

/** Theme of the page: what the system asks for. */
export const theme = () => THEMES[matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"];

/** What a canvas context does with many small cells: an image, scaled. */
export function withCells(context) {
  const small = document.createElement("canvas"), cells = small.getContext("2d", { willReadFrequently: true });
  let image = null;
  context.putCells = (width, height, x, y, w, h, fill) => {
    if (image?.width !== width || image.height !== height) {
      if (small.width < width) small.width = width;
      if (small.height < height) small.height = height;
      image = cells.createImageData(width, height);
    }
    fill(image.data);
    cells.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, width, height, x, y, w, h);
  };
  return context;
}

export class Board {
  scene = null;
  #due = 0;
  #drag = null;
  #pinch = new Map();

  /**
   * @param host element that becomes the board. Callbacks: onPoint(cell or null, event), onSelect(cell), onMove().
   */
  constructor(host, label, callbacks) {
    Object.assign(this, { host, callbacks, x: 0, y: 0, w: 64, h: 22, left: 40 });
    this.canvas = document.createElement("canvas");
    this.context = withCells(this.canvas.getContext("2d", { alpha: false }));
    host.append(this.canvas);
    host.tabIndex = 0;
    host.setAttribute("role", "application");
    host.setAttribute("aria-label", label);
    new ResizeObserver(() => this.#resize()).observe(host);
    host.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) host.addEventListener(kind, (event) => this.#pointer(event));
    host.addEventListener("pointerleave", () => this.callbacks.onPoint?.(null));
    host.addEventListener("keydown", (event) => this.#key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  /** Width and height of the part with cells. */
  get room() {
    const height = this.host.clientHeight - BELOW;
    return { width: Math.max(40, this.host.clientWidth - this.left - (this.scene?.strip ? STRIP : 2)), height: Math.max(40, height) };
  }

  get frame() {
    return { left: this.left, top: 1, x: this.x, y: this.y, w: this.w, h: this.h, ...this.room };
  }

  /** Show a scene, at the same place. */
  show(scene) {
    this.scene = scene;
    this.left = scene.left ?? 40;
    this.#clamp();
    this.paint();
  }

  /** Bring a column to the right end, or where it is seen. */
  reveal(row, column) {
    const { width, height } = this.room, n = width / this.w, m = height / this.h;
    if (column < this.x) this.x = column - 1;
    if (column + 1 > this.x + n) this.x = column + 1.5 - n;
    if (row !== null && row < this.y) this.y = row;
    if (row !== null && row + 1 > this.y + m) this.y = row + 1 - m;
    this.#clamp();
    this.paint();
  }

  /** Cells as wide as `w` pixels, the point (px, py) of the board staying where it is. */
  zoom(w, px = this.left + this.room.width / 2, py = this.room.height / 2) {
    const column = this.x + (px - this.left) / this.w, row = this.y + py / this.h;
    this.w = Math.max(Math.min(this.#least(), 40), Math.min(WIDEST, w));
    this.#clamp();
    this.x = column - (px - this.left) / this.w;
    this.y = row - py / this.h;
    this.#moved();
  }

  pan(columns, rows = 0) {
    this.x += columns;
    this.y += rows;
    this.#moved();
  }

  /** Where a cell is on the page: {x, y, width, height} in CSS pixels of the board. */
  rect(row, column) {
    return { x: this.left + (column - this.x) * this.w, y: 1 + (row - this.y) * this.h, width: this.w, height: this.h };
  }

  /** Cell under a point of the board, or null. */
  cell(px, py) {
    const { scene } = this, { width, height } = this.room;
    if (!scene || px < this.left || px > this.left + width || py < 1 || py > height) return null;
    const row = Math.floor(this.y + (py - 1) / this.h), column = Math.floor(this.x + (px - this.left) / this.w);
    if (row < 0 || column < 0 || row >= scene.nRow || column >= scene.nColumn || scene.level(row, column) === -2) return null;
    return [row, column];
  }

  /** Draw at the next frame. */
  paint() {
    if (!this.#due) this.#due = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#due = 0;
    const { context, scene, canvas } = this, ratio = devicePixelRatio, colours = theme(), frame = this.frame;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = css(colours.paper);
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!scene) return;
    const { columns, rows } = shown(scene, frame);
    scene.need?.(...columns, ...rows);
    context.save();
    context.beginPath();
    context.rect(frame.left, 0, frame.width, frame.height + 1);
    context.clip();
    paintCells(context, scene, frame, colours);
    context.restore();
    paintNames(context, scene, frame, colours);
  }

  #resize() {
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(this.host.clientWidth * ratio);
    this.canvas.height = Math.round(this.host.clientHeight * ratio);
    this.#clamp();
    cancelAnimationFrame(this.#due);
    this.#draw(); // at once: a resized canvas is black until it is drawn
  }

  #least() {
    return this.scene ? this.room.width / this.scene.nColumn : 1;
  }

  #clamp() {
    if (!this.scene) return;
    const { width, height } = this.room, { nRow, nColumn, square } = this.scene;
    this.w = Math.max(Math.min(this.w, WIDEST), Math.min(this.#least(), 40));
    this.h = square ? Math.max(Math.min(this.w * 0.5, 40), Math.min(this.w, 14)) : Math.max(12.5, Math.min(34, height / nRow));
    this.x = Math.max(0, Math.min(this.x, nColumn - width / this.w));
    this.y = Math.max(0, Math.min(this.y, nRow - height / this.h));
  }

  #moved() {
    this.#clamp();
    this.paint();
    this.callbacks.onMove?.(this);
  }

  #wheel(event) {
    const box = this.host.getBoundingClientRect(), scale = event.deltaMode ? 30 : 1;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoom(this.w * Math.exp(-event.deltaY * scale * 0.004), event.clientX - box.left, event.clientY - box.top);
      return;
    }
    const tall = this.scene && this.scene.nRow * this.h > this.room.height + 1;
    const dx = event.deltaX + (event.shiftKey ? event.deltaY : 0), dy = event.shiftKey || !tall ? 0 : event.deltaY;
    const before = [this.x, this.y];
    this.pan((dx * scale) / this.w, (dy * scale) / this.h);
    if (before[0] !== this.x || before[1] !== this.y) event.preventDefault(); // else the page scrolls
  }

  #pointer(event) {
    const box = this.host.getBoundingClientRect(), at = [event.clientX - box.left, event.clientY - box.top];
    if (event.type === "pointerdown") {
      if (event.button) return;
      this.#pinch.set(event.pointerId, at);
      this.#drag = { at, x: this.x, y: this.y, far: false };
      return;
    }
    if (event.type === "pointermove") {
      if (this.#pinch.has(event.pointerId)) this.#pinch.set(event.pointerId, at);
      if (this.#drag && this.#pinch.size === 2) return this.#pinched();
      if (this.#drag) {
        const [dx, dy] = [at[0] - this.#drag.at[0], at[1] - this.#drag.at[1]];
        if (!this.#drag.far && Math.hypot(dx, dy) < 5) return undefined;
        if (!this.#drag.far) this.host.setPointerCapture(event.pointerId);
        this.#drag.far = true;
        [this.x, this.y] = [this.#drag.x - dx / this.w, this.#drag.y - dy / this.h];
        return this.#moved();
      }
      return this.callbacks.onPoint?.(this.cell(...at), event);
    }
    const drag = this.#drag;
    this.#pinch.delete(event.pointerId);
    this.#drag = null;
    if (event.type === "pointerup" && drag && !drag.far) {
      const cell = this.cell(...at);
      if (cell) this.callbacks.onSelect?.(cell);
    }
    return undefined;
  }

  #pinched() {
    const [a, b] = this.#pinch.values(), apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
    const before = this.#drag.apart ?? apart;
    Object.assign(this.#drag, { apart, far: true });
    this.zoom((this.w * apart) / before, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
  }

  #key(event) {
    const { scene } = this;
    if (!scene || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step && event.shiftKey) this.pan(step[1] * 4, step[0] * 4);
    else if (step) {
      const [row, column] = scene.selected ? [scene.selected[0] + step[0], scene.selected[1] + step[1]] : this.#first();
      const cell = [Math.max(0, Math.min(scene.nRow - 1, row)), Math.max(0, Math.min(scene.nColumn - 1, column))];
      this.reveal(...cell);
      this.callbacks.onSelect?.(cell);
    } else if (event.key === "+" || event.key === "=") this.zoom(this.w * 1.25);
    else if (event.key === "-") this.zoom(this.w / 1.25);
    else if (event.key === "0") this.zoom(this.#least());
    else if (event.key === "Escape" && scene.selected) this.callbacks.onSelect?.(null);
    else return;
    event.preventDefault();
  }

  #first() {
    const { columns } = shown(this.scene, this.frame);
    return [0, Math.min(this.scene.nColumn, columns[1]) - 1];
  }
}
