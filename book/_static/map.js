// The filters of the map of the field. Without this script the page shows the whole table and no filters.
const form = document.querySelector(".map-filters");
const rows = [...document.querySelectorAll(".map-table tbody tr")];
const fields = [...form.querySelectorAll("[data-filter]")];

function show() {
  let count = 0;
  for (const row of rows) {
    const fits = fields.every(({ dataset, value }) =>
      dataset.filter === "text"
        ? row.textContent.toLowerCase().includes(value.trim().toLowerCase())
        : !value || row.dataset[dataset.filter] === value);
    row.hidden = !fits;
    count += fits;
  }
  form.querySelector("output").textContent = `${count} of ${rows.length} systems`;
}

form.hidden = false;
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
show();  // a browser may have kept what was typed before
