// Numbers and times for people.

/** A number with about four digits that count; a dash where there is none. */
export function num(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return Math.abs(value) < 1e15 ? value.toLocaleString("en") : value.toExponential(2);
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2);
  if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return String(Number(value.toPrecision(4)));
}

/** With a sign, as advantages are read. */
export function signed(value) {
  return typeof value === "number" ? (value > 0 ? "+" : value < 0 ? "−" : "±") + num(Math.abs(value)) : "–";
}

/** Seconds as 0.4 s, 48 s, 3 min 05 s or 2 h 07 min. */
export function duration(seconds) {
  if (typeof seconds !== "number") return "–";
  if (seconds < 9.95) return `${num(Math.round(seconds * 10) / 10)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}

/** A time as the reader's clock and calendar have it. */
export function moment(seconds) {
  if (typeof seconds !== "number") return "";
  return new Date(seconds * 1000).toLocaleString("sv").slice(0, 16);
}

/** A share as a percentage. */
export function percent(value) {
  return typeof value === "number" ? `${num(Math.round(value * 1000) / 10)} %` : "–";
}

/** A value of the configuration. */
export function setting(value) {
  if (value === undefined) return "–";
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** "1 group", "2 groups". */
export function count(number, one, many) {
  return `${num(number)} ${number === 1 ? one : many || `${one}s`}`;
}
