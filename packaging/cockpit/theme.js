/**
 * Light or dark as Cockpit has it. Cockpit serves no script for this: each page reads the choice of
 * the shell, which keeps it in localStorage and announces changes, and otherwise asks the browser.
 * It is a script of its own, before the first paint, so that a dark page does not flash.
 */
const KEY = "shell:style";
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");

function apply(chosen) {
    const style = chosen || localStorage.getItem(KEY) || "auto";
    const dark = style === "dark" || (style === "auto" && prefersDark.matches);
    document.documentElement.classList.toggle("pf-theme-dark", dark);
    document.documentElement.classList.toggle("pf-v6-theme-dark", dark);
}

window.addEventListener("storage", event => { if (event.key === KEY) apply() });
window.addEventListener("cockpit-style", event => apply(event.detail?.style));
prefersDark.addEventListener("change", () => apply());
apply();
