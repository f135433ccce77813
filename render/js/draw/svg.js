// The few calls of a canvas context that paint.js makes, written down as SVG.

const escaped = (text) => String(text).replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`)
  .replace(/[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
const ANCHOR = { left: "start", center: "middle", right: "end" };

export class SvgContext {
  parts = [];
  fillStyle = "#000";
  strokeStyle = "#000";
  lineWidth = 1;
  font = "12px sans-serif";
  textAlign = "left";
  textBaseline = "middle";

  /** `ruler` is a canvas context: it knows how wide texts are. */
  constructor(width, height, ruler) { Object.assign(this, { width, height, ruler }); }

  fillRect(x, y, width, height) {
    if (width > 0 && height > 0) this.parts.push(`<rect x="${n(x)}" y="${n(y)}" width="${n(width)}" height="${n(height)}" fill="${this.fillStyle}"/>`);
  }

  strokeRect(x, y, width, height) {
    this.parts.push(`<rect x="${n(x)}" y="${n(y)}" width="${n(width)}" height="${n(height)}" fill="none" stroke="${this.strokeStyle}" stroke-width="${this.lineWidth}"/>`);
  }

  fillText(text, x, y) {
    const [, size, family] = /([\d.]+)px (.*)/.exec(this.font);
    this.parts.push(`<text x="${n(x)}" y="${n(y)}" font-size="${size}" font-family="${escaped(family)}" text-anchor="${ANCHOR[this.textAlign]}" dominant-baseline="central" direction="ltr" unicode-bidi="isolate" fill="${this.fillStyle}">${escaped(text)}</text>`);
  }

  measureText(text) {
    this.ruler.font = this.font;
    return this.ruler.measureText(text);
  }

  putCells(width, height, x, y, w, h, fill) {
    const data = new Uint8ClampedArray(4 * width * height);
    fill(data);
    for (let row = 0; row < height; row++)
      for (let column = 0; column < width; column++) {
        const at = 4 * (row * width + column);
        if (!data[at + 3]) continue;
        this.fillStyle = `rgb(${data[at]},${data[at + 1]},${data[at + 2]})`;
        this.fillRect(x + (column * w) / width, y + (row * h) / height, w / width + 0.02, h / height + 0.02);
      }
  }

  text() {
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" viewBox="0 0 ${this.width} ${this.height}">${this.parts.join("")}</svg>\n`;
  }
}

const n = (number) => String(Math.round(number * 100) / 100);
