// A curve in the height of a line.

const SPACE = "http://www.w3.org/2000/svg";

/** A small curve without axes; what it shows stands beside it in numbers. */
export function spark(values, width = 120, height = 22) {
  const svg = document.createElementNS(SPACE, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  const known = values.filter((one) => typeof one === "number");
  if (known.length < 2) return svg;
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const points = [];
  values.forEach((one, index) => {
    if (typeof one !== "number") return;
    const y = high > low ? (height - 3) * (1 - (one - low) / (high - low)) + 1.5 : height / 2;
    points.push(`${((index * (width - 2)) / (values.length - 1) + 1).toFixed(1)},${y.toFixed(1)}`);
  });
  const path = document.createElementNS(SPACE, "polyline");
  path.setAttribute("points", points.join(" "));
  svg.append(path);
  return svg;
}
