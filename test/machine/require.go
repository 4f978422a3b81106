package machine

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"multihomed/test/lab"
)

// checkPrograms names everything that is missing, in one line: of what a boot runs,
// and of what making a root runs.
func checkPrograms(build bool) error {
	if os.Geteuid() != 0 {
		return errors.New("not root: containers and namespaces need it, run this with sudo")
	}
	required := []struct{ program, pkg string }{{"systemd-nspawn", "systemd-container"}, {"mount", "mount"}}
	if build {
		required = append(required, struct{ program, pkg string }{"debootstrap", "debootstrap"})
	}
	var programs, packages []string
	for _, r := range required {
		if !have(r.program) {
			programs, packages = append(programs, r.program), append(packages, r.pkg)
		}
	}
	if len(programs) > 0 {
		return fmt.Errorf("%s not found: test/lab/install-requirements %s",
			strings.Join(programs, ", "), strings.Join(packages, " "))
	}
	return nil
}

func checkBoot() error {
	if err := checkPrograms(false); err != nil {
		return err
	}
	if !lab.Inside() {
		return errors.New("not inside a lab: call machine.Main first in TestMain")
	}
	return nil
}

func have(program string) bool {
	_, err := lab.LookPath("", program)
	return err == nil
}
