"use strict";
// Everything is on the page without this script; it adds the slider over ACT steps, sorting and copying.

function showStep(query, step) {
  const slider = query.querySelector("input");
  const predictions = query.querySelectorAll(".prediction");
  let said = `step ${step} of ${slider.max}`;
  for (const prediction of predictions) {
    const list = prediction.querySelector(".stretches");
    const bySteps = JSON.parse(list.dataset.byStep);
    const own = Math.min(step, bySteps.length);
    for (const item of list.children) item.hidden = own < item.dataset.first || own > item.dataset.last;
    const [confidence, change] = bySteps[own - 1];
    let text = `confidence ${confidence === null ? "–" : `${confidence.toFixed(0)} %`}`;
    if (predictions.length === 1) said += `, ${text}`;
    if (own < step) text = `ended at step ${own}: ${text}`;
    if (change !== null) text += `, latent moved ${change.toFixed(1)} %`;
    prediction.querySelector(".now").textContent = text;
  }
  query.querySelector("output").textContent = said;
  slider.setAttribute("aria-valuetext", said);
}

for (const query of document.querySelectorAll(".query")) {
  const slider = query.querySelector("input");
  query.classList.add("by-step");
  for (const hidden of query.querySelectorAll(".slider, .now")) hidden.hidden = false;
  slider.addEventListener("input", () => showStep(query, Number(slider.value)));
  showStep(query, Number(slider.value));
}

function compareCells(a, b, index, sign) {
  const [left, right] = [a, b].map((row) => row.cells[index]);
  const [leftNone, rightNone] = [left, right].map((cell) => cell.dataset.sort === "");
  if (leftNone || rightNone) return leftNone - rightNone;
  const areNumbers = left.dataset.sort !== undefined && right.dataset.sort !== undefined;
  const order = !areNumbers
    ? left.textContent.trim().localeCompare(right.textContent.trim(), undefined, { numeric: true })
    : left.dataset.sort - right.dataset.sort;
  return sign * order;
}

for (const button of document.querySelectorAll("th button")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const isAscending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    const body = header.closest("table").tBodies[0];
    const rows = [...body.rows].sort((a, b) => compareCells(a, b, header.cellIndex, isAscending ? 1 : -1));
    body.append(...rows);
  });
}

for (const button of document.querySelectorAll("button[data-copies]")) {
  const source = document.getElementById(button.dataset.copies);
  const said = button.parentElement.querySelector("[role=status]");
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.value);
      said.textContent = "Copied.";
    } catch {
      source.closest("details").open = true;
      source.select();
      said.textContent = "Selected: copy it with the keyboard.";
    }
  });
}
