/**
 * From what model.js says to elements. Every text becomes a text node: names of interfaces and
 * profiles come from whoever configured them, and are never markup.
 */

const SVG = "http://www.w3.org/2000/svg";

/** Shapes beside the words of a state, so that no state is told by colour alone. 16 by 16. */
const SHAPES = {
    ok: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm-1.1 10.3L3.8 8.2l1.1-1.1 2 2 4.2-4.3 1.1 1.1Z",
    warning: "M8 1.2 15.4 14.4H.6ZM7.2 6v4h1.6V6Zm0 5.2v1.6h1.6v-1.6Z",
    error: "M5.1 1h5.8L15 5.1v5.8L10.9 15H5.1L1 10.9V5.1Zm.4 3.4L4.4 5.5 6.9 8l-2.5 2.5 1.1 1.1L8 9.1l2.5 2.5 1.1-1.1L9.1 8l2.5-2.5-1.1-1.1L8 6.9Z",
    notice: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm-.8 3h1.6v1.6H7.2Zm0 2.8h1.6V12H7.2Z",
    neutral: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.6a5.4 5.4 0 1 1 0 10.8A5.4 5.4 0 0 1 8 2.6Z",
};

/**
 * Makes an element.
 * @param {string} tag
 * @param {Object<string, *>} attributes `on…` are listeners, false and null leave one out
 * @param {...(Node|string|null)} children strings become text
 */
export function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on"))
            element.addEventListener(name.slice(2), value);
        else if (value === true)
            element.setAttribute(name, "");
        else if (value !== false && value !== null && value !== undefined)
            element.setAttribute(name, value);
    }
    element.append(...children.filter(child => child !== null && child !== undefined && child !== ""));
    return element;
}

/** The shape of a state; the word beside it says the same. */
function icon(kind) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", `icon ${kind}`);
    svg.setAttribute("viewBox", "0 0 16 16");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", SHAPES[kind] ?? SHAPES.neutral);
    path.setAttribute("fill-rule", "evenodd");
    svg.append(path);
    return svg;
}

function state(kind, word) {
    return el("span", { class: `state ${kind}` }, icon(kind), el("span", {}, word));
}

/** A point in time for people and programs. */
function time(since) {
    const at = new Date(since);
    if (isNaN(at))
        return String(since);
    const today = at.toDateString() === new Date().toDateString();
    const text = today ? at.toLocaleTimeString() : at.toLocaleString();
    return el("time", { datetime: at.toISOString() }, text);
}

/**
 * Fills a container anew if its model changed since the last time. The focus stays on the element
 * of the same data-key, and disclosures of the same data-key stay as the reader left them.
 * @param {Element} container
 * @param {*} model
 * @param {function(*): Array<Node|string>} build
 */
export function fill(container, model, build) {
    const shown = JSON.stringify(model);
    if (container.shown === shown)
        return;
    container.shown = shown;
    const focused = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    const open = new Map([...container.querySelectorAll("details[data-key]")].map(d => [d.dataset.key, d.open]));
    container.replaceChildren(...build(model).filter(Boolean));
    for (const details of container.querySelectorAll("details[data-key]")) {
        if (open.has(details.dataset.key))
            details.open = open.get(details.dataset.key);
    }
    if (focused !== undefined)
        [...container.querySelectorAll("[data-key]")].find(e => e.dataset.key === focused)?.focus();
}

/** The line under the title of the page. */
export function headline(h) {
    return [
        el("p", { class: "headline-title" }, icon(h.kind), el("strong", {}, h.title), h.since ? " since " : null, h.since ? time(h.since) : null),
        h.text ? el("p", { class: "headline-text" }, h.text) : null,
        h.command ? command(h.command) : null,
    ];
}

/** A command to copy. The page never runs one. */
function command(text) {
    const copy = el("button", {
        type: "button", class: "button small", "data-key": `copy ${text}`, "aria-label": `Copy the command ${text}`,
        onclick: async event => {
            const button = event.currentTarget;
            try {
                await navigator.clipboard.writeText(text);
                button.textContent = "Copied";
            } catch {
                // Browsers offer the clipboard to pages over HTTPS and of this host alone.
                window.getSelection().selectAllChildren(button.previousElementSibling);
                button.textContent = "Selected";
            }
        },
    }, "Copy");
    return el("div", { class: "command" }, el("code", {}, text), copy);
}

/** Findings, or the sentence that there are none. */
export function findings(model, none) {
    if (model.length === 0)
        return [el("p", { class: "none" }, icon("ok"), none)];
    return [el("ul", { class: "findings" }, ...model.map(f => el(
        "li", { class: `finding ${f.severity}` },
        el("p", { class: "finding-head" }, state(f.severity, f.label), f.link ? el("span", { class: "name" }, f.link) : null),
        el("p", {}, f.text),
        f.evidence.length > 0 ? el("ul", { class: "evidence" }, ...f.evidence.map(e => el("li", {}, el("code", {}, e)))) : null,
        f.fix ? el("p", { class: "fix" }, el("span", { class: "label" }, "To fix: "), f.fix) : null,
        ...f.commands.filter(c => c !== f.fix).map(command),
        f.since ? el("p", { class: "since" }, "Since ", time(f.since)) : null,
    )))];
}

/** What is not known is not said to be fine. */
export function unread(model) {
    return model.length > 0 ? [el("ul", { class: "caveats" }, ...model.map(text => el("li", {}, "Not read: ", text)))] : [];
}

/** What a deeper check found beyond that. */
export function diagnosis(model) {
    return [
        el("h3", {}, "Found by the deeper check at ", time(model.at)),
        ...findings(model.findings, "The deeper check found nothing more."),
        model.unlooked.length > 0 ? el(
            "details", { "data-key": "unlooked" }, el("summary", {}, "What was not looked at"),
            el("ul", {}, ...model.unlooked.map(text => el("li", {}, text))),
        ) : null,
    ];
}

/** The way of unbound traffic, a line for each family. */
export function unbound(model) {
    return model.map(u => el(
        "li", { class: "way" },
        el("p", {},
           el("span", { class: "family" }, u.family), ` ${u.text}`,
           u.interface ? " " : null, u.interface ? el("strong", { class: "name" }, u.interface) : null,
           u.table ? ` (${u.table})` : null),
        u.moved ? el("p", { class: "moved" }, state("warning", "Moved"), " from ", el("strong", { class: "name" }, u.from), u.why ? `: ${u.why}` : null) : null,
        !u.moved && u.why ? el("p", { class: "help" }, u.why) : null,
    ));
}

function pair(term, ...definition) {
    return el("div", { class: "pair" }, el("dt", {}, term), el("dd", {}, ...definition));
}

export function pairs(model) {
    return model.map(([term, definition]) => pair(term, definition));
}

function health(h) {
    return el(
        "li", {}, el("span", { class: "family" }, h.family), state(h.kind, h.word),
        h.measured.length > 0 ? el("span", { class: "measured" }, h.measured.join(", ")) : null,
        (h.kind === "error" || h.kind === "warning") && h.why ? el("span", { class: "why" }, h.why) : null,
    );
}

function address(a) {
    return el("span", { class: "address" }, el("code", {}, a.text), a.flags.length > 0 ? ` ${a.flags.join(" ")}` : null);
}

/** A cell has its role and the name of its column: on a phone the table is laid out as a list. */
function cell(column, ...children) {
    return el("td", { role: "cell", "data-label": column }, ...children);
}

function columns(...names) {
    return el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...names.map(n => el("th", { role: "columnheader", scope: "col" }, n))));
}

function networks(link) {
    if (link.networks.length === 0)
        return null;
    const names = ["Family", "Network", "Table", "Addresses", "Gateway"];
    return el(
        "table", { class: "inner", role: "table" }, el("caption", { class: "for-ears" }, `Networks of ${link.name}`), columns(...names),
        el("tbody", { role: "rowgroup" }, ...link.networks.map(n => el(
            "tr", { role: "row" },
            cell(names[0], n.family), cell(names[1], el("code", {}, n.prefix)), cell(names[2], n.table),
            cell(names[3], ...n.addresses.map(address)), cell(names[4], n.gateway === "–" || n.gateway.includes(" ") || n.gateway === "none" ? n.gateway : el("code", {}, n.gateway)),
        ))),
    );
}

function details(link) {
    return [
        el("dl", { class: "pairs" },
           pair("Why it is a link", link.why || "–"),
           link.roleWhy ? pair(`Why it is ${link.role === "Uplink" ? "an uplink" : "local"}`, link.roleWhy) : null,
           ...link.roles.map(([family, text]) => pair(`Role for ${family}`, text)),
           ...link.health.map(h => pair(
               `Health of ${h.family}`, h.word, h.since ? " since " : null, h.since ? time(h.since) : null,
               h.why ? `: ${h.why}` : null, h.more?.length > 0 ? `; ${h.more.join(", ")}` : null,
           )),
           ...link.leftAlone.map(([family, why]) => pair(`${family} is left alone`, why)),
           link.unused.length > 0 ? pair("Addresses that are not used", ...link.unused.map(address)) : null,
           pair("Rules and routes", link.force)),
        networks(link),
    ];
}

const LINK_COLUMNS = ["Link", "State", "Role", "Health", "Addresses", "Routing", "Action"];

/**
 * The links, as a table. Only the rows of links that changed are made anew: with 1,000 links the
 * others are most of the work.
 * @param {Element} container
 * @param {Array} model links of model.js
 * @param {{allowed: boolean, hostOff: boolean}} can what the user may do
 * @param {function(string, boolean, Element)} onswitch
 */
export function links(container, model, can, onswitch) {
    if (model.length === 0) {
        fill(container, "none", () => [el("p", { class: "none" }, "There are no links. Connect a network, and it appears here.")]);
        return;
    }
    fill(container, "some", () => [el("table", { class: "links", role: "table" }, el("caption", { class: "for-ears" }, "Links of this host"), columns(...LINK_COLUMNS))]);
    const table = container.firstElementChild;
    const bodies = new Map([...table.tBodies].map(body => [body.dataset.link, body]));
    let before = table.tHead;
    for (const link of model) {
        const body = bodies.get(link.name) ?? el("tbody", { "role": "rowgroup", "data-link": link.name });
        bodies.delete(link.name);
        fill(body, { link, can }, () => rows(link, can, onswitch));
        body.classList.toggle("off", link.off);
        if (before.nextElementSibling !== body)
            before.after(body);
        before = body;
    }
    for (const body of bodies.values())
        body.remove();
}

/** A link and its details are one group of rows. Details of a link in trouble are open at first. */
function rows(link, can, onswitch) {
    const id = `details-of-${[...link.name].map(c => c.codePointAt(0).toString(16)).join("-")}`;
    const action = el("button", {
        type: "button", class: "button secondary small", "data-key": `switch ${link.name}`,
        "aria-label": `Switch ${link.name} ${link.off ? "on" : "off"}`,
        disabled: !can.allowed || can.hostOff, "aria-describedby": can.allowed ? null : "rights",
        onclick: event => onswitch(link.name, link.off, event.currentTarget),
    }, link.off ? "Switch on" : "Switch off");
    const sub = [link.profile && link.profile !== link.name ? link.profile : "", link.type].filter(Boolean).join(" · ");
    const addresses = link.addresses.length > 2 ? [...link.addresses.slice(0, 2), `and ${link.addresses.length - 2} more`] : link.addresses;
    return [el(
        "tr", { role: "row" },
        el("th", { role: "rowheader", scope: "row" }, el("span", { class: "name" }, link.name), sub ? el("span", { class: "sub" }, sub) : null),
        cell(LINK_COLUMNS[1], state(link.kind, link.state)),
        cell(LINK_COLUMNS[2], link.role),
        cell(LINK_COLUMNS[3], link.health.length > 0 ? el("ul", { class: "health" }, ...link.health.map(health)) : "–"),
        cell(LINK_COLUMNS[4], ...(addresses.length > 0 ? addresses.map(a => el("span", { class: "address" }, a)) : ["–"])),
        cell(LINK_COLUMNS[5], link.complete ? link.force : state("error", link.force)),
        cell(LINK_COLUMNS[6], action),
    ), el(
        "tr", { role: "row", class: "more" },
        el("td", { role: "cell", colspan: LINK_COLUMNS.length }, link.off
            ? el("p", { class: "help" }, `Its traffic follows the main table. It was ${link.why}`, link.since ? " at " : null, link.since ? time(link.since) : null, ".")
            : el("details", { "data-key": id, open: link.trouble }, el("summary", {}, "Details", el("span", { class: "for-ears" }, ` of ${link.name}`)), ...details(link))),
    )];
}

/** An explanation: the answer, then every rule on the way. */
export function answer(model, verbose, onverbose) {
    const rules = ["Priority", "Rule", "What happens"];
    return [
        el("p", { class: `summary ${model.kind}` }, icon(model.kind), el("strong", {}, model.summary)),
        model.assumptions.length > 0 ? el("ul", { class: "assumed" }, ...model.assumptions.map(a => el("li", {}, "Assumed: ", a))) : null,
        el("p", { class: "check" },
           el("input", { type: "checkbox", id: "verbose", "data-key": "verbose", checked: verbose, onchange: e => onverbose(e.target.checked) }), " ",
           el("label", { for: "verbose" }, "Show each rule by itself")),
        ...model.lookups.flatMap((l, i) => [
            l.title ? el("h3", { id: `lookup-${i}` }, l.title) : null,
            el("div", { class: "scroller", role: "region", tabindex: "0", "aria-label": `Rules of lookup ${i + 1}` }, el(
                "table", { class: "rules", role: "table" }, el("caption", { class: "for-ears" }, l.title || "Rules on the way"), columns(...rules),
                el("tbody", { role: "rowgroup" }, ...l.rows.map(r => el(
                    "tr", { role: "row", class: r.kind },
                    cell(rules[0], r.priority),
                    cell(rules[1], r.folded ? r.rule : el("code", {}, r.rule)),
                    cell(rules[2], r.kind === "answer" ? state("ok", `Answer: ${r.result}`) : r.result, r.whose ? el("span", { class: "whose" }, r.whose) : null),
                ))),
            )),
            l.objection ? el("p", { class: "kernel" }, icon("error"), l.objection) : null,
            l.kernel ? el("p", { class: "kernel" }, icon(l.kernel.kind), l.kernel.text) : null,
        ]),
        model.mayDiffer.length > 0 ? el("h3", {}, "What may lead to another answer") : null,
        model.mayDiffer.length > 0 ? el("ul", { class: "caveats" }, ...model.mayDiffer.map(t => el("li", {}, t))) : null,
        ...unread(model.unread),
    ];
}

/** The graph as an image: what an image shows cannot run, and loads nothing. */
export function graph(drawing, svg) {
    return [el("img", {
        src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`, width: drawing.width, height: drawing.height,
        alt: `${drawing.title}. ${drawing.description}`,
    })];
}

/** The options of "what if": each link down, and up again where it may be down. */
export function whatIf(names) {
    return [
        el("option", { value: "" }, "Nothing changes"),
        ...names.map(name => el("option", { value: `down:${name}` }, `${name} is down`)),
        ...names.map(name => el("option", { value: `up:${name}` }, `${name} is up`)),
    ];
}

export function options(names) {
    return names.map(name => el("option", { value: name }));
}
