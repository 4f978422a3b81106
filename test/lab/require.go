package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// requirements are the programs that the lab runs, and the Debian packages that
// have them.
var requirements = []struct{ program, pkg string }{
	{"NetworkManager", "network-manager"},
	{"nmcli", "network-manager"},
	{"dbus-daemon", "dbus"},
	{"dnsmasq", "dnsmasq-base"},
	{"ifup", "ifupdown"},
	{"dhclient", "isc-dhcp-client"},
	{"dhcpcd", "dhcpcd-base"},
	{"ip", "iproute2"},
}

// checkRequirements names everything that is missing, in one line.
func checkRequirements() error {
	if os.Geteuid() != 0 {
		return errors.New("not root: namespaces, NetworkManager and raw sockets need it, run this with sudo")
	}
	if err := checkPrograms(""); err != nil {
		return err
	}
	if _, err := slowness(); err != nil {
		return err
	}
	if _, err := os.Stat("/proc/self/ns/net"); err != nil {
		return fmt.Errorf("the kernel has no network namespaces, or /proc is not mounted: %w", err)
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return errors.New("the kernel has no IPv6 (ipv6.disable=1?)")
	}
	return nil
}

// checkPrograms looks below root for what the lab runs.
func checkPrograms(root string) error {
	var programs, packages []string
	for _, r := range requirements {
		if _, err := LookPath(root, r.program); err == nil {
			continue
		}
		programs = append(programs, r.program)
		if len(packages) == 0 || packages[len(packages)-1] != r.pkg {
			packages = append(packages, r.pkg)
		}
	}
	if len(programs) > 0 {
		return fmt.Errorf("%s not found: apt-get install %s",
			strings.Join(programs, ", "), strings.Join(packages, " "))
	}
	return nil
}

// LookPath finds a program below root ("" for where the calling thread is) and
// returns its path as seen from root. What is a path already is returned as it is.
func LookPath(root, program string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	for dir := range strings.SplitSeq(SearchPath, ":") {
		path := filepath.Join(dir, program)
		info, err := os.Stat(filepath.Join(root, path))
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w in %s/ of %s", program, exec.ErrNotFound, root, SearchPath)
}
