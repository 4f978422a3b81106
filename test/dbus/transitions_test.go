package dbus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/status/socket"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// An audience is everybody who observes the daemon: what each was told, as lines.
type audience struct {
	*rig
	mu    sync.Mutex
	lines []string
	marks int
}

func (a *audience) hear(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lines = append(a.lines, fmt.Sprintf(format, args...))
}

// listen hears signals of links, and what the daemon says of its problems.
func (a *audience) listen(conn *dbus.Conn) {
	a.t.Helper()
	a.must(conn.AddMatchSignal(dbus.WithMatchPathNamespace(dbusapi.Path)))
	signals := make(chan *dbus.Signal, 1000)
	conn.Signal(signals)
	go func() {
		for s := range signals {
			if !strings.HasSuffix(s.Name, ".PropertiesChanged") {
				a.hear("signal %s", s.Name[strings.LastIndex(s.Name, ".")+1:])
				continue
			}
			changed, _ := s.Body[1].(map[string]dbus.Variant)
			for name, v := range changed {
				a.hear("signal %s=%v", name, v)
			}
		}
	}()
}

// sample asks for the status and for metrics all the time.
func (a *audience) sample() {
	every := func(pause time.Duration, ask func() string) {
		ticker := time.NewTicker(pause)
		ended := make(chan struct{})
		var asking sync.WaitGroup
		asking.Go(func() {
			last := ""
			for {
				select {
				case <-ticker.C:
					if now := ask(); now != last {
						last = now
						a.hear("%s", now)
					}
				case <-ended:
					return
				}
			}
		})
		a.t.Cleanup(func() {
			close(ended)
			asking.Wait()
			ticker.Stop()
		})
	}
	every(10*time.Millisecond, func() string {
		s, err := socket.Ask(a.t.Context(), a.runtime(), false)
		if errors.Is(err, socket.ErrUnanswered) { // The host is busy.
			s, err = socket.Ask(a.t.Context(), a.runtime(), false)
		}
		if err != nil {
			return "status: " + err.Error()
		}
		text := "status:"
		for _, l := range s.Links {
			text += " " + l.Interface
			if l.Draining {
				text += " draining"
			}
		}
		if s.Daemon.Ready && len(s.Links) != 2 {
			text += " incomplete"
		}
		for _, h := range s.Failover.Uplinks {
			if h.Family == "ipv4" {
				text += " " + string(h.State)
			}
		}
		return text
	})
	every(100*time.Millisecond, func() string {
		text, err := a.ctl("metrics")
		up, links := strings.Contains(text, "\nmultihomed_up 1\n"), strings.Count(text, "\nmultihomed_link_info{")
		return fmt.Sprintf("metrics: up %t, links %d, error %v", up, links, err)
	})
}

// watch hears the NDJSON of multihomectl, but for what the kernel has.
func (a *audience) watch() *lab.Process {
	a.t.Helper()
	_, err := a.ctl("version")
	a.must(err)
	p, err := a.Start(lab.ProcessConfig{Path: filepath.Join(filepath.Dir(a.path), "bin", "multihomectl"), Args: []string{"watch", "--json", "--config", a.path}})
	a.must(err)
	return p
}

func (a *audience) runtime() string { return filepath.Join(filepath.Dir(a.path), "run") }

// told returns what everybody was told since the last call: until watch has told of a rule that is added now,
// and of another one. The status that the first comes with may be of a moment before.
func (a *audience) told(watch *lab.Process, from *int) []string {
	a.t.Helper()
	for range 2 {
		a.marks++
		source := fmt.Sprintf("192.0.2.%d", a.marks)
		_, err := a.IP(a.t.Context(), "rule", "add", "pref", "40000", "from", source, "lookup", "main")
		a.must(err)
		_, err = watch.WaitLineAfter(a.t.Context(), *from, "from "+source+" ")
		a.must(err)
	}
	a.mu.Lock()
	out := a.lines
	a.lines = nil
	a.mu.Unlock()
	lines := watch.Lines()
	for _, line := range lines[*from:] {
		var e struct{ Event, Link, Text, Why string }
		a.must(json.Unmarshal([]byte(line), &e))
		if !strings.HasPrefix(e.Event, "rule-") && !strings.HasPrefix(e.Event, "route-") {
			out = append(out, strings.TrimSpace(fmt.Sprintf("watch: %s %s %s [%s]", e.Event, e.Link, e.Text, e.Why)))
		}
	}
	*from = len(lines)
	return out
}

// TestTransitions: while the configuration is read again, the prober dies, NetworkManager restarts or is
// away, and the daemon restarts, nobody is told of a link that has gone, goes down or is judged anew.
func TestTransitions(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, 2)
	program, err := labtest.Build("multihomed")
	r.must(err)
	prober, err := r.StartProber(t.Context(), program)
	r.must(err)
	config, err := os.ReadFile(r.path)
	r.must(err)
	conn := r.connect()
	health := func(state string) {
		t.Helper()
		for _, name := range []string{"wan0", "wan1"} {
			labtest.Eventually(t, func() error {
				i, err := net.InterfaceByName(name)
				if err != nil {
					return err
				}
				v, err := conn.Object(dbusapi.Name, dbusapi.LinkPath(i.Index)).GetProperty(dbusapi.LinkInterface + ".Health")
				if err != nil {
					return err
				}
				if all, _ := v.Value().([]map[string]dbus.Variant); len(all) != 2 || all[0]["State"].Value() != state {
					return fmt.Errorf("health of %s is %v, want %s", name, v, state)
				}
				return nil
			})
		}
	}
	r.property(conn, dbusapi.Path, manager+"LinksInForce", "2")
	health("up")
	a := &audience{rig: r}
	a.listen(conn)
	watch := a.watch()
	_, err = watch.WaitLine(t.Context(), `"event":"watching"`)
	r.must(err)
	a.sample()
	reads := 0
	reload := func(more string) {
		t.Helper()
		reads++
		level := []string{"debug", "info"}[reads%2]
		r.must(os.WriteFile(r.path, append(fmt.Appendf(nil, "log_level = %q\n", level), append(slices.Clip(config), more...)...), 0o644))
		r.must(conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+"Reload", 0).Err)
		r.property(conn, dbusapi.Path, manager+"LogLevel", level)
	}
	state := func(want string) { t.Helper(); r.property(conn, dbusapi.Path, manager+"State", want) }
	// What nobody may be told, whatever happens to others; answers says that the daemon is there all the time.
	const gone, answers, judged = "InterfacesRemoved|LinksTotal=|draining|going down|incomplete|link-removed|no longer a link", "nobody|no answer|up false|links 0|links 1|not answering|not running, it was", "health-changed|unknown|no probes"
	from := len(watch.Lines())
	for _, step := range []struct {
		name   string
		do     func()
		never  string
		always []string
	}{
		{"reload", func() { reload(""); reload("") }, gone + "|" + answers + "|" + judged + "|Problems=|service-changed", nil},
		{"bind", func() { reload("[[bind]]\nmark = 16\nlink = \"wan1\"\n"); reload("") }, gone + "|" + answers + "|" + judged, []string{"signal ObjectsPlanned="}},
		{"the prober dies", func() { r.must(prober.Kill()); health("unprobed") }, gone + "|" + answers + "|unknown", []string{"watch: health-changed wan1", "signal Health="}},
		{"reload without a prober", func() { reload(""); reload("") }, gone + "|" + answers + "|" + judged + "|Problems=| up|\"up\"", nil},
		{"the prober is back", func() {
			prober, err = r.StartProber(t.Context(), program)
			r.must(err)
			health("up")
		}, gone + "|" + answers, []string{"watch: health-changed wan0 IPv4 up"}},
		{"NetworkManager restarts", func() {
			r.must(r.RestartNM(t.Context()))
			state("ready")
			r.property(conn, dbusapi.Path, manager+"StateReason", "")
		}, gone + "|" + answers + "|" + judged, nil},
		{"NetworkManager is killed", func() {
			r.must(r.KillNM())
			r.property(conn, dbusapi.Path, manager+"StateReason", "NetworkManager is not running")
			reload("")
			state("ready")
		}, gone + "|" + "nobody|no answer|up false|links 0|links 1|not answering" + "|" + judged, []string{"watch: service-changed"}},
		{"NetworkManager starts", func() { r.must(r.StartNM(t.Context())); state("ready") }, gone + "|" + answers + "|" + judged, nil},
		{"the daemon restarts", func() {
			r.must(r.daemon.Stop(t.Context()))
			r.start()
			r.property(conn, dbusapi.Path, manager+"LinksInForce", "2")
			health("up")
		}, "InterfacesRemoved|draining|going down|incomplete|link-removed|no longer a link|not answering", []string{"signal InterfacesAdded"}},
	} {
		step.do()
		told := a.told(watch, &from)
		for _, line := range told {
			for word := range strings.SplitSeq(step.never, "|") {
				// On a busy host answers are late for a moment.
				if strings.Contains(line, "suspect") {
					continue
				}
				// What metrics count of links is not what status says of their health.
				if strings.Contains(line, word) && (word != " up" || !strings.HasPrefix(line, "metrics")) {
					t.Errorf("%s: %q in %s", step.name, word, line)
				}
			}
		}
		for _, want := range step.always {
			if !slices.ContainsFunc(told, func(line string) bool { return strings.HasPrefix(line, want) }) {
				t.Errorf("%s: nobody is told %q", step.name, want)
			}
		}
		t.Logf("%s:\n\t%s", step.name, strings.Join(told, "\n\t"))
	}
}
