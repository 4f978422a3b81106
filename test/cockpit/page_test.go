package cockpit_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// A site is the page with a stand-in for Cockpit and for the bus.
type site struct {
	*browser
	*httptest.Server
	// documents are the answers of the daemon by method, before the page is loaded.
	documents map[string]string
	before    string // JavaScript, likewise
}

// newSite starts a server and a browser.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{browser: open(t, 0), documents: map[string]string{
		"Describe": document(t, "sound.json"), "Explain": document(t, "explain-bound.json"),
		"Graph": read(t, "../../docs/graph.svg"), "On": "multihomed is switched on", "Off": "multihomed is switched off",
		"Diagnose": `{"schema": 1, "findings": [], "not_looked": []}`,
	}}
	var manifest struct {
		Policy string `json:"content-security-policy"`
	}
	if err := json.Unmarshal([]byte(read(t, "../../packaging/cockpit/manifest.json")), &manifest); err != nil {
		t.Fatal(err)
	}
	stub := read(t, "testdata/cockpit.js")
	files := http.StripPrefix("/multihomed/", http.FileServer(http.Dir("../../packaging/cockpit")))
	mux := http.NewServeMux()
	// http.FileServer has another address for index.html.
	mux.HandleFunc("/multihomed/index.html", func(w http.ResponseWriter, _ *http.Request) {
		// What Cockpit adds to the policy of a page, and how (src/cockpit/packages.py).
		w.Header().Set("Content-Security-Policy", manifest.Policy+"; connect-src 'self'; object-src 'none'; block-all-mixed-content")
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(read(t, "../../packaging/cockpit/index.html")))
	})
	mux.Handle("/multihomed/", files)
	mux.HandleFunc("/base1/cockpit.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		documents, err := json.Marshal(s.documents)
		if err != nil {
			t.Error(err)
		}
		_, _ = fmt.Fprintf(w, "%s\nhost.documents = %s;\n%s\n", stub, documents, s.before)
	})
	mux.HandleFunc("/favicon.ico", func(http.ResponseWriter, *http.Request) {})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// visit loads the page anew, as a user with these rights.
func (s *site) visit(allowed bool) {
	s.t.Helper()
	s.do(chromedp.Navigate(s.URL + "/multihomed/index.html"))
	s.until("window.host && host.owners.length > 0")
	on[any](s.browser, fmt.Sprintf("host.allow(%t); null", allowed))
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// document is a golden document of multihomectl.
func document(t *testing.T, name string) string {
	t.Helper()
	return read(t, filepath.Join("../../internal/cli/testdata", name))
}

// change edits a document.
func change(t *testing.T, text string, edit func(map[string]any)) string {
	t.Helper()
	var d map[string]any
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	edit(d)
	out, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// watched are the uplinks of the sound host, with a family of each in this state.
func watched(state string) map[string]any {
	h := func(name, family, state, why string) map[string]any {
		return map[string]any{"interface": name, "family": family, "state": state, "why": why, "loss": 0.004, "rtt_ms": 12.4, "deaths_today": 1, "targets": []any{}, "interval_ms": 200}
	}
	return map[string]any{"enabled": true, "uplinks": []any{
		h("wan0", "ipv4", state, "nothing answers: silent for 0.61 s"), h("wan0", "ipv6", "up", "probes are answered"), h("wwan0", "ipv4", "up", "probes are answered"),
	}}
}

// everywhere runs axe at both widths and in both themes, and takes the pictures.
func (s *site) everywhere(name string) {
	s.t.Helper()
	for _, width := range []int64{360, 1280} {
		for _, theme := range []string{"light", "dark"} {
			s.look(width, theme)
			s.until(fmt.Sprintf(`document.documentElement.classList.contains("pf-v6-theme-dark") === %t`, theme == "dark"))
			s.fits(name, width)
			s.accessible(fmt.Sprintf("%s, %d, %s", name, width, theme))
			s.picture(fmt.Sprintf("%s-%d-%s", name, width, theme))
		}
	}
}

// fits fails if the page is wider than its window.
func (s *site) fits(name string, width int64) {
	s.t.Helper()
	if wide := on[int](s.browser, "document.documentElement.scrollWidth"); int64(wide) > width {
		s.t.Errorf("%s: the page is %d wide in a window of %d", name, wide, width)
	}
}

// says fails unless an element says all of this.
func (s *site) says(id string, wanted ...string) {
	s.t.Helper()
	text := s.text(id)
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			s.t.Errorf("%s lacks %q:\n%s", id, w, text)
		}
	}
}

// TestPage shows the page the situations of a host.
func TestPage(whole *testing.T) {
	t := whole // of the situation that is shown
	s := newSite(t)
	s.look(1280, "light")
	usable := `!document.getElementById("content").hidden`
	run := func(name string, f func()) {
		whole.Run(name, func(part *testing.T) {
			t, s.t = part, part
			f()
			s.quiet(strings.TrimPrefix(s.URL, "http://"))
			s.forget()
		})
	}

	run("sound", func() {
		s.visit(true)
		s.until(usable)
		s.says("headline", "All links work as planned", "45 of 45 rules and routes are active, on 3 links")
		s.says("findings", "Nothing is wrong.")
		s.says("unbound", "leaves by wan0", "leaves by wg0 (table 51820)")
		s.says("links", "wan0", "Fibre · ethernet", "Uplink", "198.51.100.7", "wwan0", "lan0", "Local", "16 of 16 active")
		on[any](s.browser, `document.querySelectorAll("details").forEach(d => d.open = true); null`)
		s.says("links", "main has a default route via 198.51.100.1 through it", "198.51.100.0/24", "10000", "2001:db8:0:1:1c0e:7d2a:90fb:41c6 deprecated temporary", "fe80::1",
			`profile "LTE" sets ipv6.route-table=77`, "host addresses")
		s.says("others-list", "docker0", "it is external: somebody else configured it")
		s.until(`document.querySelector("#graph-view img")?.naturalWidth > 100`)
		if alt := on[string](s.browser, `document.querySelector("#graph-view img").alt`); !strings.Contains(alt, "15 rules, 6 tables, 2 devices") {
			t.Errorf("the graph in words: %s", alt)
		}
		s.everywhere("sound")
	})

	run("broken", func() {
		s.documents["Describe"] = change(t, document(t, "broken.json"), func(d map[string]any) {
			d["unread"], d["unchecked_links"] = []any{"the leases: database is locked"}, 2
		})
		s.visit(true)
		s.until(usable)
		s.says("findings", "Not read: the leases: database is locked", "Not read: whether the traffic of 2 links leaves by its link")
		s.says("headline", "3 errors found", "33 of 45", "1 to remove")
		order := on[string](s.browser, `[...document.querySelectorAll("#findings .finding .state")].map(e => e.textContent).join()`)
		if order != "Error,Error,Error,Warning,Notice" {
			t.Errorf("findings are in the order %s", order)
		}
		s.says("findings", "wan0", "Address 198.51.100.8 is used by another host", "To fix: Give one of the two another address, then: nmcli device reapply wan0")
		s.says("links", "14 of 16 active, 1 to remove", "Going down", "Down")
		s.everywhere("broken")
	})

	run("a dead link", func() {
		s.documents["Describe"] = change(t, document(t, "sound.json"), func(d map[string]any) { d["failover"] = watched("up") })
		s.visit(true)
		s.until(usable)
		s.says("links", "12 ms", "less than 1 % lost")
		// The focus is in a row that is about to change.
		on[any](s.browser, `document.querySelector("[data-key='switch wan0']").focus(); null`)
		dead := change(t, document(t, "sound.json"), func(d map[string]any) {
			d["failover"] = watched("down")
			d["unbound"] = map[string]any{"ipv4": map[string]any{"interface": "wwan0", "table": 10999, "main": "wan0", "why": "wan0 does not work"}}
			d["links"].([]any)[0].(map[string]any)["carrier"] = false
		})
		told, err := json.Marshal(dead)
		if err != nil {
			t.Fatal(err)
		}
		on[any](s.browser, fmt.Sprintf("host.documents.Describe = %s; host.signal(); null", told))
		s.until(`document.getElementById("headline").innerText.includes("wan0 (IPv4) is down")`)
		s.says("links", "No carrier", "Down")
		s.says("unbound", "leaves by wwan0 (table 10999)", "Moved from wan0: wan0 does not work", "IPv6 has no way out")
		s.says("announcement", "wan0: No carrier.", "wan0, IPv4: Down. Nothing answers: silent for 0.61 s.", "IPv4 traffic that is bound to no link leaves by wwan0.")
		if key := on[string](s.browser, "document.activeElement.dataset.key"); key != "switch wan0" {
			t.Errorf("the focus went to %q", key)
		}
		s.everywhere("dead")
	})

	run("a signal alone", func() {
		const alone = "no other link has a default route"
		s.documents["Describe"] = change(t, document(t, "sound.json"), func(d map[string]any) {
			d["failover"] = watched("up")
			d["failover"].(map[string]any)["uplinks"].([]any)[1].(map[string]any)["state"] = "unprobed"
			d["failover"].(map[string]any)["uplinks"].([]any)[1].(map[string]any)["not_watched"] = alone
		})
		s.visit(true)
		s.until(usable)
		// The document stays as it was, and is not asked for until all was looked at.
		on[any](s.browser, `window.answer = host.documents.Describe; host.documents.Describe = new Promise(() => {});
			const v = (t, v) => ({t, v});
			host.signal("/org/multihomed1/link/_32", {Carrier: v("b", false), Health: v("aa{sv}", [{Family: v("s", "ipv4"), State: v("s", "down"), Why: v("s", "no carrier"), Since: v("t", 1795967459000000)}, {Family: v("s", "ipv6"), State: v("s", "up"), Why: v("s", "probes are answered"), Since: v("t", 1795967459000000)}])});
			host.signal("/org/multihomed1", {Unbound: v("a{sa{sv}}", {ipv4: {Interface: v("s", "wwan0"), Table: v("u", 10999), Main: v("s", "wan0"), Why: v("s", "wan0 does not work"), Shares: v("a(sq)", [])}})});
			host.signal("/org/multihomed1/link/_399", {Carrier: v("b", false)}); null`)
		s.says("headline", "wan0 (IPv4) is down")
		s.says("links", "No carrier", "Down", "no carrier")
		s.says("unbound", "leaves by wwan0 (table 10999)", "Moved from wan0: wan0 does not work")
		s.says("announcement", "wan0, IPv6: Up. Probes are answered.")
		if text := s.text("links"); strings.Contains(text, alone) {
			t.Errorf("a reason of the state before is shown:\n%s", text)
		}
	})

	run("off", func() {
		s.documents["Describe"] = change(t, document(t, "empty.json"), func(d map[string]any) {
			d["off"] = map[string]any{"since": "2026-11-20T17:05:00Z", "by": "alice"}
			d["daemon"] = map[string]any{"running": true, "ready": true}
		})
		s.visit(true)
		s.until(usable)
		s.says("headline", "multihomed is switched off by alice since ", "All traffic follows the main table.")
		s.says("switch", "Switch on")
		s.says("unbound", "It follows the main table.")
		s.says("links", "There are none while multihomed is switched off.")
		s.accessible("off")
	})

	run("a link is off", func() {
		s.documents["Describe"] = change(t, document(t, "sound.json"), func(d map[string]any) {
			d["off_links"] = []any{map[string]any{"interface": "wlan0", "uuid": "", "since": nil, "by": ""}}
		})
		s.visit(true)
		s.until(usable)
		s.says("links", "wlan0", "Switched off", "Its traffic follows the main table.", "Switch on")
		s.says("headline", "wlan0 is switched off.")
		s.accessible("a link is off")
	})

	run("no links", func() {
		s.documents["Describe"] = change(t, document(t, "empty.json"), func(d map[string]any) { d["daemon"] = map[string]any{"running": true, "ready": true} })
		s.visit(true)
		s.until(usable)
		s.says("headline", "No links")
		s.says("links", "There are no links. Connect a network, and it appears here.")
	})

	run("starting", func() {
		s.documents["Describe"] = change(t, document(t, "empty.json"), func(d map[string]any) {
			d["daemon"] = map[string]any{"running": true, "ready": false, "waiting": "NetworkManager is not running"}
		})
		s.visit(true)
		s.until(usable)
		s.says("headline", "multihomed is waiting", "NetworkManager is not running.")
		s.says("content", "Nothing is known to be wrong yet.", "Not known yet.")
		if text := s.text("content"); strings.Contains(text, "no way out") || strings.Contains(text, "There are no links") {
			t.Errorf("it says what it does not know yet:\n%s", text)
		}
	})

	run("the daemon goes and comes", func() {
		s.documents["Describe"] = document(t, "sound.json")
		s.before = "host.present = false;"
		s.visit(true)
		s.before = ""
		s.until(`document.getElementById("headline").innerText.includes("multihomed is not running")`)
		s.says("headline", "sudo systemctl start multihomed")
		s.everywhere("absent")
		if on[bool](s.browser, usable) {
			t.Error("there is content without a daemon")
		}
		on[any](s.browser, "host.own(true); null")
		s.until(usable)
		on[any](s.browser, "host.own(false); null")
		s.until(`document.getElementById("headline").innerText.includes("multihomed is not running") && ` + "!(" + usable + ")")
		s.says("announcement", "multihomed is not running.")
	})

	run("answers that are none", func() {
		for answer, wanted := range map[string]string{"{": "an answer that is not JSON", `{"schema": 2}`: "documents that this page does not know", "null": "does not know"} {
			s.documents["Describe"] = answer
			s.visit(true)
			s.until(fmt.Sprintf(`document.getElementById("headline").innerText.includes(%q)`, wanted))
		}
		s.documents["Describe"] = document(t, "sound.json")
		for graph, wanted := range map[string]string{
			"<html xmlns='http://www.w3.org/1999/xhtml'/>":                                                                                                       "not SVG",
			"<svg xmlns='http://www.w3.org/2000/svg'><script>fetch('http://192.0.2.1/')</script></svg>":                                                          "never draws: script",
			"<svg xmlns='http://www.w3.org/2000/svg'><g><foreignObject/></g></svg>":                                                                              "never draws: foreignObject",
			"<svg xmlns='http://www.w3.org/2000/svg' xmlns:h='http://www.w3.org/1999/xhtml'><h:iframe src='http://192.0.2.1/'/></svg>":                           "never draws: iframe",
			"<svg xmlns='http://www.w3.org/2000/svg' xmlns:x='http://www.w3.org/1999/xlink'><image x:href='http://192.0.2.1/a.png' width='9' height='9'/></svg>": "never draws: image",
		} {
			s.documents["Graph"] = graph
			s.visit(true)
			s.until(fmt.Sprintf(`document.getElementById("graph-view").innerText.includes(%q)`, wanted))
		}
		// Chromium complains about its own words for what is no XML.
		s.quiet(strings.TrimPrefix(s.URL, "http://"))
		s.documents["Graph"] = "<svg"
		s.visit(true)
		s.until(`document.getElementById("graph-view").innerText.includes("not SVG")`)
		s.forget()
		s.documents["Graph"] = read(t, "../../docs/graph.svg")
		s.visit(true)
	})

	run("hostile names", func() {
		const image, script = `<img src=x onerror=alert(1)>`, `"><script>document.title = "taken"</script>`
		s.documents["Describe"] = change(t, document(t, "broken.json"), func(d map[string]any) {
			for _, l := range d["links"].([]any) {
				link := l.(map[string]any)
				link["interface"], link["profile"], link["type"] = image+fmt.Sprint(link["index"]), script, image
				link["why"], link["role_why"] = image, script
				link["left_alone"] = map[string]any{"ipv4": image}
			}
			for _, p := range d["problems"].([]any) {
				problem := p.(map[string]any)
				problem["text"], problem["fix"], problem["link"], problem["commands"] = image, script, image, []any{image + "; reboot"}
			}
			d["unbound"] = map[string]any{"ipv4": map[string]any{"interface": image, "table": 1, "main": script, "why": image}}
			d["other_interfaces"] = []any{map[string]any{"interface": script, "why": image}}
		})
		s.visit(true)
		s.until(usable)
		s.says("links", image, script)
		s.says("findings", image+"; reboot")
		s.says("unbound", image, script)
		on[any](s.browser, `document.querySelectorAll("details").forEach(d => d.open = true); null`)
		if made := on[int](s.browser, `document.querySelectorAll("img:not(#graph-view img), main script, main iframe").length`); made != 0 || on[string](s.browser, "document.title") != "Multihomed" {
			t.Errorf("names became %d elements", made)
		}
		s.accessible("hostile names")
		s.documents["Describe"] = document(t, "sound.json")
	})

	run("long names", func() {
		long := strings.Repeat("Längename", 23)
		s.documents["Describe"] = change(t, document(t, "broken.json"), func(d map[string]any) {
			for _, l := range d["links"].([]any) {
				link := l.(map[string]any)
				link["profile"], link["why"], link["left_alone"] = long, long, map[string]any{"ipv4": long}
			}
			for _, p := range d["problems"].([]any) {
				problem := p.(map[string]any)
				problem["text"], problem["fix"], problem["evidence"] = long, "nmcli "+long, []any{long}
				problem["commands"] = []any{problem["fix"]}
			}
			d["unread"] = []any{long}
			d["unbound"] = map[string]any{"ipv4": map[string]any{"interface": "wwan0", "table": 10999, "main": "wan0", "why": long}}
			d["other_interfaces"] = []any{map[string]any{"interface": "eth99", "why": long}}
			d["off_links"] = []any{map[string]any{"interface": "wlan0", "since": "2026-11-20T17:05:00Z", "by": long}}
			d["bindings"] = []any{
				map[string]any{"selector": "user", "value": "backup", "link": "LTE", "interface": "wwan0", "strict": true, "by": "configuration", "state": "active"},
				map[string]any{"selector": "cgroup", "value": long, "link": long, "strict": false, "by": "runtime", "state": "link-down", "why": "there is no link", "dropped_packets": 7},
			}
			d["answers"] = map[string]any{"families": []any{map[string]any{"family": "ipv4", "answers": true}, map[string]any{"family": "ipv6", "answers": false}}, "dropped_packets": 1}
		})
		s.visit(true)
		s.until(usable)
		on[any](s.browser, `document.querySelectorAll("details").forEach(d => d.open = true); null`)
		s.says("bindings", "user=backup is bound to LTE (wwan0) Active", "in the configuration", "Link down", "there is no link; not strict; until the next boot; 7 packets dropped")
		s.says("about", "IPv4 answered on the link that was asked, 1 stray packet dropped")
		if copies := on[int](s.browser, `document.querySelectorAll("#findings .command button").length`); copies != on[int](s.browser, `document.querySelectorAll("#findings .finding").length`) {
			t.Errorf("%d commands can be copied", copies)
		}
		for _, width := range []int64{360, 1280} {
			s.look(width, "light")
			s.fits("long names", width)
			s.picture(fmt.Sprintf("long-%d-light", width))
		}
		s.documents["Describe"] = document(t, "sound.json")
	})

	run("all uplinks are dead", func() {
		s.documents["Describe"] = change(t, document(t, "sound.json"), func(d map[string]any) {
			links, uplinks := d["links"].([]any), []any{}
			text, err := json.Marshal(links[0])
			if err != nil {
				t.Fatal(err)
			}
			for n := range 30 {
				name := fmt.Sprintf("ppp%d", n)
				links = append(links, json.RawMessage(strings.ReplaceAll(string(text), "wan0", name)))
				uplinks = append(uplinks, map[string]any{"interface": name, "family": "ipv4", "state": "down", "why": "nothing answers", "targets": []any{}})
			}
			d["links"], d["failover"] = links, map[string]any{"enabled": true, "uplinks": uplinks}
		})
		s.visit(true)
		s.until(usable)
		s.says("headline", "30 uplinks are down")
		if grave, open := on[bool](s.browser, `document.querySelector("#headline .icon.error") !== null`), on[int](s.browser, `document.querySelectorAll(".links details[open]").length`); !grave || open != 0 {
			t.Errorf("it is an error: %t; the details of %d links are open", grave, open)
		}
		s.documents["Describe"] = document(t, "sound.json")
	})

	run("hidden", func() {
		s.visit(true)
		s.until(usable + ` && document.querySelector("#graph-view img") && host.calls.filter(c => c[0] === "Describe").length > 0`)
		on[any](s.browser, `cockpit.hidden = true; host.calls.length = 0; for (let i = 0; i < 50; i++) host.signal(); null`)
		if calls := on[string](s.browser, `JSON.stringify(host.calls)`); calls != "[]" {
			t.Errorf("a hidden page calls %s", calls)
		}
		on[any](s.browser, `cockpit.hidden = false; cockpit.emit("visibilitychange"); null`)
		s.until(`host.calls.some(c => c[0] === "Describe")`)
	})

	run("limited access", func() {
		s.visit(false)
		s.until(usable)
		s.says("rights", "turn on administrative access")
		if enabled := on[int](s.browser, `[...document.querySelectorAll("[data-key^=switch], #diagnose")].filter(b => !b.disabled).length`); enabled != 0 {
			t.Errorf("%d buttons are enabled that would be refused", enabled)
		}
		s.accessible("limited access")
		on[any](s.browser, "host.allow(true); null")
		s.until(`document.getElementById("rights").hidden && !document.querySelector("[data-key='switch all']").disabled`)
	})

	run("off and on by keyboard", func() {
		s.visit(true)
		s.until(usable)
		s.tabTo(`e.dataset.key === "switch wwan0"`)
		s.press("\r")
		s.until(`document.getElementById("confirm").open`)
		s.says("confirm", "Switch wwan0 off?", "removes its rules and routes of wwan0", "until you switch it on")
		s.accessible("the dialog")
		s.picture("dialog-1280-light")
		if id := on[string](s.browser, "document.activeElement.id"); id != "confirm-no" {
			t.Errorf("the focus is on %q: a key pressed twice would switch", id)
		}
		s.press("\x1b")
		s.until(`!document.getElementById("confirm").open && document.activeElement.dataset.key === "switch wwan0"`)
		if calls := on[string](s.browser, `JSON.stringify(host.calls.filter(c => c[0] === "Off"))`); calls != "[]" {
			t.Errorf("Escape did not cancel: %s", calls)
		}

		on[any](s.browser, `host.refuse.Off = "switching is not for you; to fix: ask the administrator"; null`)
		s.press("\r")
		s.until(`document.getElementById("confirm").open`)
		s.tabTo(`e.id === "confirm-yes"`)
		s.press("\r")
		s.until(`document.getElementById("confirm-error").innerText.includes("Switching is not for you")`)
		s.accessible("the dialog with an error")
		on[any](s.browser, "host.refuse = {}; null")
		if id := on[string](s.browser, "document.activeElement.id"); id != "confirm-yes" {
			t.Errorf("after the refusal the focus is on %q", id)
		}
		s.press("\r")
		s.until(`!document.getElementById("confirm").open && document.activeElement.dataset.key === "switch wwan0"`)
		s.says("told", "multihomed is switched off")
		if calls := on[string](s.browser, `JSON.stringify(host.calls.filter(c => c[0] === "Off").pop())`); calls != `["Off",["wwan0"]]` {
			t.Errorf("it called %s", calls)
		}
	})

	run("explain", func() {
		s.visit(true)
		s.until(usable)
		s.tabTo(`e.id === "destination"`)
		s.press("\r")
		s.says("destination-error", "Enter an address such as 203.0.113.1")
		s.accessible("a wrong address")
		s.do(chromedp.KeyEvent("203.0.113.1"))
		on[any](s.browser, `advanced.open = true; source.value = "10.91.0.120"; dport.value = "70000"; uid.value = "0"; mark.value = "0x10"; protocol.value = "tcp"; what_if.value = "down:wan0"; and_if.value = "up:wwan0"; null`)
		s.press("\r")
		s.says("dport-error", "The destination port is a number from 1 to 65535.")
		on[any](s.browser, `dport.value = "443"; null`)
		s.press("\r")
		s.until(`!document.getElementById("answer").hidden`)
		const packet = `{"destination":{"t":"s","v":"203.0.113.1"},"source":{"t":"s","v":"10.91.0.120"},"protocol":{"t":"s","v":"tcp"},` +
			`"dport":{"t":"q","v":443},"uid":{"t":"u","v":0},"mark":{"t":"u","v":16},"what_if":{"t":"as","v":["down:wan0","up:wwan0"]}}`
		if asked := on[string](s.browser, `JSON.stringify(host.calls.find(c => c[0] === "Explain")[1])`); asked != packet {
			t.Errorf("it asked %s", asked)
		}
		s.answersLike("explain-bound-80.txt")
		s.until(`host.calls.filter(c => c[0] === "Graph").pop()[1].flow?.v === "203.0.113.1"`)
		s.everywhere("explain")
		on[any](s.browser, "verbose.click(); null")
		if n := on[int](s.browser, `document.querySelectorAll("#answer .rules tbody tr").length`); n != 19 {
			t.Errorf("%d rules one by one", n)
		}
		for name, wanted := range map[string]string{"System.Error.ETIMEDOUT": "did not answer in time", "org.freedesktop.DBus.Error.ServiceUnknown": "sudo systemctl start multihomed", "org.multihomed1.Error.Failed": "The words of the bus"} {
			on[any](s.browser, fmt.Sprintf(`host.refuse.Explain = "the words of the bus"; host.refusal = %q; document.getElementById("explain-ask").click(); null`, name))
			s.until(fmt.Sprintf(`document.querySelector("#answer .error")?.innerText.includes(%q)`, wanted))
		}
	})

	run("a thousand links", func() {
		s.documents["Describe"] = change(t, document(t, "sound.json"), func(d map[string]any) {
			links := d["links"].([]any)
			text, err := json.Marshal(links[0])
			if err != nil {
				t.Fatal(err)
			}
			for n := range 997 {
				links = append(links, json.RawMessage(strings.ReplaceAll(string(text), "wan0", fmt.Sprintf("ppp%d", n))))
			}
			d["links"] = links
		})
		s.visit(true)
		s.until(`document.querySelectorAll(".links > tbody").length === 1000`)
		t.Logf("a change of one of 1,000 links takes %.0f ms", on[float64](s.browser, `(async () => {
			const d = JSON.parse(host.documents.Describe); d.links[500].carrier = false; host.documents.Describe = JSON.stringify(d);
			const began = performance.now(); host.signal();
			while (!document.getElementById("links").innerText.includes("No carrier")) await new Promise(requestAnimationFrame);
			return performance.now() - began;
		})()`))
		if on[bool](s.browser, `document.getElementById("graph").open`) {
			t.Error("the graph of 1,000 links is drawn though nobody asked")
		}
	})
}

var space = regexp.MustCompile(`\s+`)

// answersLike compares the answer with what multihomectl prints.
func (s *site) answersLike(name string) {
	s.t.Helper()
	golden := space.ReplaceAllString(document(s.t, name), " ")
	rows := on[[]string](s.browser, `[...document.querySelectorAll("#answer .rules tbody tr")].map(r =>
		[r.cells[0].textContent, r.cells[1].textContent, r.cells[2].firstChild.textContent, r.cells[2].querySelector(".whose")?.textContent ?? ""].join(" "))`)
	for _, row := range rows {
		if row = strings.TrimSpace(strings.Replace(row, "Answer: ", "✔ ", 1)); !strings.Contains(golden, row) {
			s.t.Errorf("multihomectl does not print %q", row)
		}
	}
	if len(rows) < 8 {
		s.t.Errorf("there are %d rows", len(rows))
	}
	summary := on[string](s.browser, `document.querySelector("#answer .summary").innerText.trim()`)
	if !strings.HasPrefix(golden, summary) {
		s.t.Errorf("the summary is %q", summary)
	}
	s.says("answer", "The kernel says the same: via 10.91.0.1 dev wan1, table 10001.", "What may lead to another answer", `the field “Mark”`)
}
