package check

import (
	"io/fs"
	"path"
	"slices"
	"strings"

	"multihomed/internal/status/view"
	"multihomed/routing"
)

// checkNetworkd finds a systemd-networkd that removes what it did not make. It
// runs beside NetworkManager on some servers
// (https://github.com/systemd/systemd/issues/19106).
func checkNetworkd(v *view.View, f files) []routing.Problem {
	if !networkdRuns(f) {
		return nil
	}
	var missing []string
	for _, key := range []string{"ManageForeignRoutingPolicyRules", "ManageForeignRoutes"} {
		if !isNo(networkdSetting(f, key)) {
			missing = append(missing, key+"=no")
		}
	}
	// Where there are no links there is nothing to remove.
	if len(missing) == 0 || idle(v) {
		return nil
	}
	const dropIns = "/etc/systemd/networkd.conf.d"
	fix := "put [Network] with " + strings.Join(missing, " and ") + " into " + dropIns + "/multihomed.conf, then: systemctl restart systemd-networkd"
	if !networkdOwnsAny(v, f) {
		fix += ", or disable it"
	}
	return []routing.Problem{{
		Severity: routing.Warning,
		Text:     "systemd-networkd is running: whenever it configures a link, it removes rules and routes that it did not make, those of multihomed too",
		Fix:      fix, Commands: routing.CommandsOf(
			"mkdir -p "+dropIns,
			"printf '[Network]\\n"+strings.Join(missing, "\\n")+"\\n' >"+dropIns+"/multihomed.conf",
			"systemctl restart systemd-networkd",
		),
	}}
}

// networkdRuns goes by the unit's control group, and where there are none by
// the state that networkd leaves in /run.
func networkdRuns(f files) bool {
	if f.exists("sys/fs/cgroup/system.slice") {
		return f.exists("sys/fs/cgroup/system.slice/systemd-networkd.service")
	}
	return f.exists("run/systemd/netif/state")
}

// networkdSetting is the value in force of a key of [Network]: the main file,
// then the drop-ins of all directories in the order of their names; a file in an
// earlier directory hides one of its name (systemd.syntax(7)).
func networkdSetting(f files, key string) string {
	directories := []string{"etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd"}
	value := ""
	for _, dir := range directories {
		if text, ok := f.text(dir + "/networkd.conf"); ok {
			value = settingIn(text, key, value)
			break
		}
	}
	dropIns := map[string]string{}
	for _, dir := range directories {
		entries, err := fs.ReadDir(f.root, dir+"/networkd.conf.d")
		if err != nil {
			continue
		}
		for _, e := range entries {
			if _, hidden := dropIns[e.Name()]; !hidden && strings.HasSuffix(e.Name(), ".conf") {
				dropIns[e.Name()] = path.Join(dir, "networkd.conf.d", e.Name())
			}
		}
	}
	names := make([]string, 0, len(dropIns))
	for name := range dropIns {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		text, _ := f.text(dropIns[name])
		value = settingIn(text, key, value)
	}
	return value
}

func settingIn(text, key, value string) string {
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		name, v, found := strings.Cut(line, "=")
		if found && section == "[Network]" && strings.TrimSpace(name) == key {
			value = strings.TrimSpace(v)
		}
	}
	return value
}

func isNo(value string) bool {
	return slices.Contains([]string{"no", "n", "false", "f", "off", "0"}, strings.ToLower(value))
}
