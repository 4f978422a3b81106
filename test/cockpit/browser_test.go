package cockpit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	browserlog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"multihomed/test/lab"
)

// A browser is a headless Chromium with one tab.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu sync.Mutex
	// complaints are errors and warnings of the console, and exceptions.
	complaints []complaint
	// requests are the addresses that something was asked of.
	requests []string
	// contexts are those in which scripts of pages run, the newest last.
	contexts []runtime.ExecutionContextID
}

// A complaint is what a page said in the console that it should not have to say.
type complaint struct{ url, text string }

// open starts a browser. It may be in the network of another process.
func open(t *testing.T, networkOf int) *browser {
	t.Helper()
	b := &browser{t: t}
	options := append(chromedp.DefaultExecAllocatorOptions[:len(chromedp.DefaultExecAllocatorOptions):len(chromedp.DefaultExecAllocatorOptions)],
		chromedp.NoSandbox, // A sandbox of its own is nothing that root gets.
		chromedp.ExecPath("/usr/bin/chromium"), chromedp.UserDataDir(t.TempDir()),
		chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if networkOf != 0 {
				cmd.Args = append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", networkOf), cmd.Path}, cmd.Args[1:]...)
				cmd.Path = "/usr/bin/nsenter"
			}
		}),
	)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	b.ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(b.hear))
	t.Cleanup(cancel)
	if _, err := chromedp.Call(b.ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatalf("starting the browser: %v", err)
	}
	return b
}

// hear takes down what the browser reports.
func (b *browser) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExecutionContextCreated:
		b.contexts = append(b.contexts, e.Context.ID)
	case *runtime.EventExecutionContextsCleared:
		b.contexts = nil
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
			c := complaint{text: fmt.Sprint(e.Type)}
			if e.StackTrace != nil && len(e.StackTrace.CallFrames) > 0 {
				c.url = e.StackTrace.CallFrames[0].URL
			}
			for _, a := range e.Args {
				c.text += fmt.Sprintf(" %s%s", a.Value, a.Description)
			}
			b.complaints = append(b.complaints, c)
		}
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
		b.complaints = append(b.complaints, complaint{e.ExceptionDetails.URL, text})
	case *browserlog.EventEntryAdded:
		if e.Entry.Level == browserlog.EntryLevelError || e.Entry.Level == browserlog.EntryLevelWarning {
			b.complaints = append(b.complaints, complaint{e.Entry.URL, e.Entry.Text})
		}
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *network.EventWebSocketCreated:
		b.requests = append(b.requests, e.URL)
	}
}

// quiet fails if the page has complained, or something was asked of another host.
func (b *browser) quiet(origin string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complaints {
		// The shell and the login page are Cockpit's.
		if c.url == "" || strings.Contains(c.url, "/multihomed/") {
			b.t.Errorf("the console has: %s (%s)", c.text, c.url)
		}
	}
	for _, url := range b.requests {
		_, rest, _ := strings.Cut(url, "://")
		if !strings.HasPrefix(url, "data:") && !strings.HasPrefix(url, "blob:") && !strings.HasPrefix(rest, origin+"/") {
			b.t.Errorf("it asked %s", url)
		}
	}
	if len(b.requests) == 0 {
		b.t.Error("no request was seen at all")
	}
}

// forget forgets what quiet looks at.
func (b *browser) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.complaints, b.requests = nil, nil
}

// do runs actions that must succeed.
func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, lab.Stretched(30*time.Second))
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// script evaluates JavaScript in a context; 0 is that of the tab.
func script[T any](b *browser, in runtime.ExecutionContextID, text string) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, lab.Stretched(30*time.Second))
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](text, chromedp.EvalAwaitPromise, func(p *runtime.EvaluateParams) { p.ContextID = in }))
}

// page finds the context of the page of multihomed: the tab's own, or that of a frame in Cockpit's shell.
func (b *browser) page() (runtime.ExecutionContextID, error) {
	b.mu.Lock()
	contexts := append([]runtime.ExecutionContextID(nil), b.contexts...)
	b.mu.Unlock()
	for _, c := range contexts {
		// A context may have gone meanwhile.
		if path, err := script[string](b, c, "location.pathname"); err == nil && strings.HasSuffix(path, "/multihomed/index.html") {
			return c, nil
		}
	}
	return 0, fmt.Errorf("no page of multihomed among %d documents", len(contexts))
}

// on evaluates JavaScript in the page of multihomed.
func on[T any](b *browser, text string) T {
	b.t.Helper()
	c, err := b.page()
	var out T
	if err == nil {
		out, err = script[T](b, c, text)
	}
	if err != nil {
		b.t.Fatalf("%v\nin %s", err, lab.Tail(text, 20))
	}
	return out
}

// until waits until an expression is true in the page.
func (b *browser) until(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), lab.Stretched(30*time.Second))
	defer cancel()
	err := lab.Eventually(ctx, func() error {
		c, err := b.page()
		if err != nil {
			return err
		}
		is, err := script[bool](b, c, "Boolean("+expression+")")
		if err == nil && !is {
			err = fmt.Errorf("not yet: %s", expression)
		}
		return err
	})
	if err != nil {
		text, _ := script[string](b, 0, "document.body.innerText")
		if c, err := b.page(); err == nil {
			text, _ = script[string](b, c, "document.body.innerText")
		}
		b.t.Fatalf("%v; the page says:\n%s", err, text)
	}
}

// text is what an element says.
func (b *browser) text(id string) string {
	b.t.Helper()
	return on[string](b, fmt.Sprintf("document.getElementById(%q).innerText", id))
}

// press presses keys, as a user at the keyboard.
func (b *browser) press(keys ...string) {
	b.t.Helper()
	for _, k := range keys {
		b.do(chromedp.KeyEvent(k))
	}
}

// tabTo presses the tab key until the element with the focus fits an expression of `e`.
func (b *browser) tabTo(expression string) {
	b.t.Helper()
	for range 120 {
		if on[bool](b, "(e => Boolean("+expression+"))(document.activeElement)") {
			return
		}
		b.press("\t")
	}
	b.t.Fatalf("the tab key reaches nothing that is %s", expression)
}

// look sets the width of the window and the theme.
func (b *browser) look(width int64, theme string) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, 900))
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: theme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}}); err != nil {
		b.t.Fatal(err)
	}
}

// picture writes a screenshot into the directory of PicturesEnv, if there is one.
func (b *browser) picture(name string) {
	b.t.Helper()
	dir := os.Getenv(PicturesEnv)
	if dir == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Error(err)
	}
}

// PicturesEnv names a directory for screenshots.
const PicturesEnv = "MULTIHOMED_TEST_PICTURES"

// accessible fails if axe finds something in the page as it is now.
func (b *browser) accessible(what string) {
	b.t.Helper()
	source, err := os.ReadFile(axe)
	if err != nil {
		b.t.Fatal(err)
	}
	if !on[bool](b, "typeof axe === 'object'") {
		on[any](b, string(source)+"; null")
	}
	text := on[string](b, `axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify({
		passes: r.passes.length, violations: r.violations.map(v => ({id: v.id, impact: v.impact, nodes: v.nodes.map(n => n.html + ": " + n.failureSummary)}))}))`)
	var result struct {
		Passes     int
		Violations []struct {
			ID, Impact string
			Nodes      []string
		}
	}
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		b.t.Fatal(err)
	}
	if result.Passes < 10 {
		b.t.Errorf("%s: axe checked only %d rules", what, result.Passes)
	}
	for _, v := range result.Violations {
		b.t.Errorf("%s: axe finds %s (%s):\n%s", what, v.ID, v.Impact, strings.Join(v.Nodes, "\n"))
	}
}
