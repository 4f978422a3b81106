package vm

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"multihomed/test/lab"
)

// A requirement is a program and the Debian package that has it.
type requirement struct{ program, pkg string }

// checkPrograms names everything that is missing, in one line.
func checkPrograms(required ...requirement) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("virtual machines run Debian's kernel for amd64, and this is %s", runtime.GOARCH)
	}
	if os.Geteuid() != 0 {
		return errors.New("not root: the machine reads every file of the host, run this with sudo")
	}
	var programs, packages []string
	for _, r := range required {
		if _, err := lab.LookPath("", r.program); err != nil {
			programs, packages = append(programs, r.program), append(packages, r.pkg)
		}
	}
	if len(programs) > 0 {
		return fmt.Errorf("%s not found: test/lab/install-requirements %s",
			strings.Join(programs, ", "), strings.Join(packages, " "))
	}
	return nil
}
