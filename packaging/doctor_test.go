package packaging_test

import (
	"encoding/json"
	"fmt"
	"slices"

	"multihomed/internal/doctor"
	"multihomed/routing"
)

// doctor breaks what only a booted machine has, and runs what `multihomectl doctor --fix` prints: the
// finding goes, and so do all that came with it.
func (s *system) doctor() {
	const (
		hook  = "/usr/lib/NetworkManager/dispatcher.d/90-multihomed"
		units = "/usr/lib/systemd/system/"
	)
	findings := func() (found []routing.Code) {
		s.t.Helper()
		out, err := s.Run(s.t.Context(), "sh", "-c", "multihomectl doctor --json || test $? = 1")
		s.must(err)
		var r doctor.Report
		s.must(json.Unmarshal([]byte(out), &r))
		for _, f := range r.Findings {
			found = append(found, f.Code)
		}
		return found
	}
	for _, c := range []struct {
		code routing.Code
		// provoke makes it; heal takes away what the fix leaves.
		provoke, heal string
	}{
		{"dispatcher", "chmod o+w " + hook, ""},
		{"dispatcher", "chown nobody " + hook, ""},
		{"dispatcher", "systemctl disable NetworkManager-dispatcher", ""},
		{"daemon", "systemctl stop multihomed.service multihomed.socket", ""},
		{"network-manager", "systemctl stop multihomed.service multihomed.socket NetworkManager", "systemctl start multihomed.service"},
		{"networkd", "systemctl start systemd-networkd", "systemctl stop systemd-networkd.socket systemd-networkd; rm -r /etc/systemd/networkd.conf.d"},
		{doctor.CloudAgent, "printf '[Timer]\\nOnBootSec=1h\\n[Install]\\nWantedBy=timers.target\\n' >" + units + "nm-cloud-setup.timer; printf '[Service]\\nType=oneshot\\nExecStart=/bin/true\\n' >" + units + "nm-cloud-setup.service; systemctl daemon-reload; systemctl enable nm-cloud-setup.timer", "rm " + units + "nm-cloud-setup.*; systemctl daemon-reload"},
		{doctor.CloudAgent, "printf '[Service]\\nExecStart=/bin/true\\n' >" + units + "policy-routes@.service", "rm " + units + "policy-routes@.service; systemctl unmask policy-routes@.service"},
	} {
		s.eventually(func() error {
			if found := findings(); len(found) > 0 {
				return fmt.Errorf("before %q: %v", c.provoke, found)
			}
			return nil
		})
		s.run("sh", "-ec", c.provoke)
		s.eventually(func() error {
			if found := findings(); !slices.Contains(found, c.code) {
				return fmt.Errorf("%q: no %s in %v", c.provoke, c.code, found)
			}
			return nil
		})
		script := s.run("multihomectl", "doctor", "--fix", string(c.code))
		if _, err := s.Run(s.t.Context(), "sh", "-ec", script); err != nil {
			s.t.Fatalf("%s: %v", script, err)
		}
		s.eventually(func() error {
			if found := findings(); slices.Contains(found, c.code) {
				return fmt.Errorf("after %q: %v", script, found)
			}
			return nil
		})
		s.run("sh", "-ec", c.heal)
		s.answered(s.isps...)
	}
}
