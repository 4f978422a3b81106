package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// Where the scraped program and Prometheus listen: the ports are those of the units.
const (
	metricsAddress    = "127.0.0.1:28008"
	prometheusAddress = "127.0.0.1:9090"
)

// A scraped host is one with two providers that a real Prometheus watches.
type scraped struct {
	*failing
	client http.Client
}

// newScraped starts Prometheus with the rules of the package. Where they wait for minutes, it waits for a
// second.
func newScraped(t *testing.T) *scraped {
	t.Helper()
	s := &scraped{failing: newFailing(t, lab.HostConfig{}, quickToml, 2, nil)}
	s.client.Timeout = lab.Stretched(10 * time.Second)
	s.begin()
	program, err := labtest.Build("multihomectl")
	s.must(err)
	// What multihomed-metrics.socket and its service do, by systemd's own tool.
	_, err = s.Start(lab.ProcessConfig{
		Path: "systemd-socket-activate", Args: []string{"--listen=" + metricsAddress, program, "--config", s.path, "metrics", "--serve"},
		Env: []string{"GORACE=atexit_sleep_ms=0"},
	})
	s.must(err)
	dir := t.TempDir()
	rules, err := os.ReadFile("../../packaging/prometheus/multihomed.rules.yml")
	s.must(err)
	rules = regexp.MustCompile(`(?m)^        for: \S+$`).ReplaceAll(rules, []byte("        for: 1s"))
	s.must(os.WriteFile(filepath.Join(dir, "multihomed.rules.yml"), rules, 0o600))
	config := `{global: {scrape_interval: 500ms, evaluation_interval: 500ms}, rule_files: [multihomed.rules.yml], ` +
		`scrape_configs: [{job_name: multihomed, static_configs: [{targets: ["` + metricsAddress + `"]}]}]}`
	s.must(os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600))
	// Before it starts, Prometheus asks for the host's name, and no resolver of the lab answers.
	hosts, err := os.ReadFile("/etc/hosts")
	s.must(err)
	s.must(os.WriteFile("/etc/hosts", append(hosts, "\n127.0.0.1 lab\n"...), 0o644))
	t.Cleanup(func() { s.must(os.WriteFile("/etc/hosts", hosts, 0o644)) })
	p, err := s.Start(lab.ProcessConfig{Path: "prometheus", Dir: dir, Args: []string{
		"--config.file=prometheus.yml", "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + prometheusAddress,
	}})
	s.must(err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Prometheus' log ends:\n%s", lab.Tail(p.Log(), 20))
		}
	})
	return s
}

// ask asks Prometheus' API, and decodes the field data of its answer.
func (s *scraped) ask(path string, values url.Values, into any) error {
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+prometheusAddress+"/api/v1/"+path+"?"+values.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %w\n%s", path, err, body)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, body)
	}
	return json.Unmarshal(answer.Data, into)
}

// value waits until an expression has one result, with a value.
func (s *scraped) value(expression, want string) {
	s.t.Helper()
	s.eventually(func() error {
		var data struct{ Result []struct{ Value [2]any } }
		if err := s.ask("query", url.Values{"query": {expression}}, &data); err != nil {
			return err
		}
		if len(data.Result) != 1 || data.Result[0].Value[1] != want {
			return fmt.Errorf("%s is %v, not %s", expression, data.Result, want)
		}
		return nil
	})
}

// fires waits until an alert fires, with labels; or until no alert of that name does.
func (s *scraped) fires(name, labels string, does bool) {
	s.t.Helper()
	n := "0"
	if does {
		n = "1"
	}
	s.value(fmt.Sprintf("count(ALERTS{alertname=%q,alertstate=\"firing\"%s}) or vector(0)", name, labels), n)
}

// TestMetrics has a real Prometheus scrape a host through a failover, a repair, a reload and the death of the
// daemon: what it says is what happens, and the alerts of the package fire and resolve.
func TestMetrics(t *testing.T) {
	s := newScraped(t)
	ctx := t.Context()

	s.value("up", "1")
	s.value("multihomed_up", "1")
	s.value("multihomed_ready", "1")
	s.value("count(multihomed_uplink_alive == 1)", "4")
	s.value(`multihomed_unbound_info{family="ipv4",device="wan0",main="wan0"}`, "1")
	s.value(`sum(multihomed_objects{state=~"missing|different|misplaced|unexpected"})`, "0")
	s.value("multihomed_convergence_seconds_count > bool 0", "1")
	s.value(`sum(multihomed_changes_total{object="rule",verb="add"}) > bool 0`, "1")
	s.value(`multihomed_table_leases{state="live"}`, "4")
	s.value("count(ALERTS) or vector(0)", "0")
	// The older format names no units.
	var known map[string][]struct{ Type, Unit string }
	s.must(s.ask("metadata", url.Values{"metric": {"multihomed_convergence_seconds"}}, &known))
	if m := known["multihomed_convergence_seconds"]; len(m) != 1 || m[0].Type != "histogram" || m[0].Unit != "seconds" {
		t.Errorf("Prometheus does not read OpenMetrics: %v", known)
	}

	// Somebody deletes a rule, and it comes back.
	rules, err := s.RulesText(ctx, lab.IPv4)
	s.must(err)
	var rung []string
	for line := range strings.Lines(rules) {
		if words := strings.Fields(line); words[0] == "10000:" {
			rung = words
		}
	}
	if len(rung) < 5 {
		t.Fatalf("no rung in\n%s", rules)
	}
	_, err = s.IP(ctx, "rule", "del", "priority", "10000", "from", word(rung, "from"), "lookup", word(rung, "lookup"))
	s.must(err)
	s.value(`multihomed_repairs_total{object="rule"}`, "1")

	s.wire(0).Break(lab.Silent)
	s.value(`multihomed_uplink_health{device="wan0",family="ipv4",state="down"}`, "1")
	s.fires("MultihomedUplinkDead", `,device="wan0",family="ipv4"`, true)
	s.fires("MultihomedUplinkDead", `,device="wan0",family="ipv6"`, true)
	s.fires("MultihomedTrafficMoved", `,family="ipv4"`, true)
	s.value(`multihomed_unbound_info{family="ipv4",device="wan1",main="wan0"}`, "1")
	s.value(`multihomed_uplink_deaths_total{device="wan0",family="ipv4"}`, "1")
	s.value(`multihomed_failover_switches_total{family="ipv4",direction="away"}`, "1")
	s.fires("MultihomedAllUplinksDead", "", false)

	s.wire(0).Repair()
	s.fires("MultihomedUplinkDead", "", false)
	s.fires("MultihomedTrafficMoved", "", false)
	s.value(`multihomed_failover_switches_total{family="ipv4",direction="back"}`, "1")

	// NetworkManager gives up a link without a carrier, and nothing judges it any more.
	s.must(s.isps[1].Link().SetCarrier(false))
	s.must(s.WaitDeviceState(ctx, "wan1", "unavailable"))
	s.fires("MultihomedUplinkGone", `,device="wan1"`, true)
	s.fires("MultihomedNoUplink", "", false)
	s.must(s.isps[1].Link().SetCarrier(true))
	s.must(s.WaitDeviceState(ctx, "wan1", "disconnected"))
	s.up("wan1")
	s.fires("MultihomedUplinkGone", "", false)

	// A reload keeps what was counted.
	s.writeConfig(fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n%s[tables]\nlast = 10899\n", s.cfg.StateDir, s.cfg.RuntimeDir, quickToml))
	s.must(s.daemon.Signal(syscall.SIGHUP))
	s.value("multihomed_table_range_size", "899")
	s.value(`multihomed_repairs_total{object="rule"}`, "1")
	s.value(`multihomed_uplink_deaths_total{device="wan0",family="ipv4"}`, "1")
	s.value("sum(resets(multihomed_passes_total[5m])) + sum(resets(multihomed_convergence_seconds_count[5m]))", "0")

	// Without the daemon, the host tells what it can.
	s.kill9()
	s.fires("MultihomedDown", "", true)
	s.value("multihomed_up", "0")
	s.value("up", "1")
	s.value(`count(multihomed_link_info{role="uplink"})`, "2")
	s.start()
	s.fires("MultihomedDown", "", false)
	s.value("multihomed_up", "1")
}

// TestAlertsAndDashboard: promtool accepts every rule and every expression of the dashboard, the tests of
// the rules pass, and the strict reader of OpenMetrics takes the golden file.
func TestAlertsAndDashboard(t *testing.T) {
	t.Parallel()
	tool := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	tool("promtool", "check", "rules", "../../packaging/prometheus/multihomed.rules.yml")
	tool("promtool", "test", "rules", "../../packaging/prometheus/multihomed.test.yml")
	golden := "../../internal/metrics/testdata/"
	tool("sh", "-c", "promtool check metrics <"+golden+"full.prometheus")
	for _, name := range []string{"full.openmetrics", "no-daemon.openmetrics"} {
		tool("/usr/bin/python3", "-c", "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as read; assert len(list(read(open(sys.argv[1]).read()))) > 15", golden+name)
	}
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for i, e := range dashboard(t) {
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&rules, "  - {record: 'panel:%d', expr: %s}\n", i, text)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	tool("promtool", "check", "rules", file)

	// A metric that nobody makes would be an alert that never fires.
	made, err := os.ReadFile(golden + "full.prometheus")
	if err != nil {
		t.Fatal(err)
	}
	alerts, err := os.ReadFile("../../packaging/prometheus/multihomed.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	for _, text := range []string{rules.String(), string(alerts), string(page)} {
		for _, name := range regexp.MustCompile(`\bmultihomed_[a-z_]+\b`).FindAllString(text, -1) {
			used++
			if !regexp.MustCompile(`(?m)^` + name + `[ {]`).Match(made) {
				t.Errorf("%s is no metric", name)
			}
		}
	}
	if used < 50 {
		t.Errorf("%d metrics are used: the files are not understood", used)
	}
	for _, found := range regexp.MustCompile(`alert: (\w+)`).FindAllSubmatch(alerts, -1) {
		if !strings.Contains(string(page), "**"+string(found[1])+"**") {
			t.Errorf("docs/monitoring.md does not explain %s", found[1])
		}
	}
}

// dashboard returns the expressions of the dashboard, with values for its variables.
func dashboard(t *testing.T) (expressions []string) {
	t.Helper()
	data, err := os.ReadFile("../../packaging/grafana/multihomed.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct {
				Expr       string
				Datasource struct{ UID string }
			}
		}
	}
	if err := json.Unmarshal(data, &board); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$job", ".*", "$instance", ".*", "$__rate_interval", "5m")
	for _, p := range board.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("the panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" {
				t.Errorf("the panel %q asks %q", p.Title, target.Datasource.UID)
			}
			e := variables.Replace(target.Expr)
			if strings.Contains(e, "$") {
				t.Errorf("the panel %q has another variable: %s", p.Title, e)
			}
			expressions = append(expressions, e)
		}
	}
	if len(expressions) < 20 {
		t.Errorf("%d expressions: the dashboard is not understood", len(expressions))
	}
	return expressions
}
