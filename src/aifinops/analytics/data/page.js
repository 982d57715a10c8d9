// What the page says is all there without this: it only makes tables sortable and shows the figures of a column at once.
(() => {
  "use strict";
  const value = (row, place) => {
    const cell = row.cells[place];
    if (cell.tagName === "TH") return cell.textContent.toLowerCase();
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const compare = (one, other, up) => {
    if (one === null || other === null) return (one === null) - (other === null);
    const order = one < other ? -1 : one > other ? 1 : 0;
    return up ? order : -order;
  };
  const sort = (table, head, place) => {
    const up = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.length);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const sums = [...body.rows].filter((row) => row.querySelector("th.sum"));
    const rows = [...body.rows].filter((row) => !row.querySelector("th.sum"));
    rows.sort((a, b) => compare(value(a, place), value(b, place), up));
    body.append(...rows, ...sums);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      if (head.classList.contains("trend") || !head.textContent) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sort(table, head, place));
      head.replaceChildren(button);
    });
  }
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  for (const column of document.querySelectorAll(".plot .col")) {
    const title = column.querySelector("title");
    const said = title.textContent;
    column.addEventListener("pointerenter", () => {
      title.textContent = ""; // or the browser's own would come over it
      tip.textContent = said;
      tip.hidden = false;
    });
    column.addEventListener("pointermove", (event) => {
      const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
      const top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8);
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${Math.max(8, top)}px`;
    });
    column.addEventListener("pointerleave", () => {
      title.textContent = said;
      tip.hidden = true;
    });
  }
})();
