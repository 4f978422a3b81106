package packaging_test

import (
	"fmt"
	"strings"
)

// asUser runs a command as a user, as a login would: not in the cgroup of this test.
func (s *system) asUser(name string, args ...string) (string, error) {
	out, err := s.Run(s.t.Context(), append([]string{"systemd-run", "--quiet", "--collect", "--pipe", "--wait", "-p", "User=" + name}, args...)...)
	return fmt.Sprint(out, err), err
}

// bus has the daemon give its answers on D-Bus, under its real sandbox, and take orders from those whom
// the real polkit allows them: by a rule.
func (s *system) bus() {
	const (
		manager = "org.multihomed1.Manager"
		rule    = "/etc/polkit-1/rules.d/50-multihomed.rules"
	)
	call := func(method string, args ...string) []string {
		return append([]string{"busctl", "--system", "call", "org.multihomed1", "/org/multihomed1", manager, method}, args...)
	}
	s.eventually(func() error { _, err := s.Run(s.t.Context(), call("ListLinks")...); return err })
	if out := s.run("busctl", "--system", "status", "org.multihomed1"); !strings.Contains(out, "multihomed.service") {
		s.t.Errorf("the name is not the service's:\n%s", out)
	}
	if out := s.run(call("Describe", "a{sv}", "0")...); !strings.Contains(out, "wan1") {
		s.t.Errorf("Describe says\n%s", out)
	}
	for _, args := range [][]string{{"multihomectl", "off", "wan1"}, call("Off", "as", "1", "wan1"), call("Diagnose", "a{sv}", "0")} {
		if out, err := s.asUser("games", args...); err == nil {
			s.t.Errorf("games may %q:\n%s", args, out)
		}
	}
	for _, method := range []string{"Describe", "Plan", "Graph"} {
		if out, err := s.asUser("games", call(method, "a{sv}", "0")...); err != nil {
			s.t.Errorf("games may not %s: %s", method, out)
		}
	}
	for _, args := range [][]string{
		call("Reload"), call("Reconcile"), call("Diagnose", "a{sv}", "0"), call("Off", "as", "1", "wan1"), call("On", "as", "0"),
		call("Bind", "a{sv}", "2", "link", "s", "wan1", "user", "s", "daemon"), call("Unbind", "s", "user=daemon"),
		call("FailoverTest", "s", "wan1"), call("FailoverReset", "s", "wan1"), call("SetLogLevel", "s", "info"),
	} {
		if out, err := s.Run(s.t.Context(), args...); err != nil {
			s.t.Errorf("root, %q: %v\n%s", args, err, out)
		}
	}
	s.must(s.WriteFile(rule, []byte(`polkit.addRule(function(action, subject) {
    if (action.id == "org.multihomed1.switch" && subject.user == "games") return polkit.Result.YES;
});
`), 0o644))
	for _, args := range [][]string{{"off", "wan1"}, {"on"}} {
		s.eventually(func() error {
			out, err := s.asUser("games", append([]string{"multihomectl"}, args...)...)
			if err != nil {
				return fmt.Errorf("a rule allows games %q, which gets %s", args, out)
			}
			return nil
		})
	}
	s.run("rm", rule)
}
