// A name and keyboard focus that the theme does not give: what scrolls sideways must be reached without a mouse.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
for (const table of document.querySelectorAll(".md-typeset table")) table.tabIndex = 0;
