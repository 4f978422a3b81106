package gather

import (
	"bytes"
	"io/fs"
	"path"
	"strings"

	"multihomed/internal/doctor"
	"multihomed/internal/unitfile"
	"multihomed/routing"
)

// agents looks for programs that make rules for addresses of links, by what starts them.
func (r *reading) agents() {
	for _, unit := range []struct{ name, unit, stop string }{
		{"nm-cloud-setup", "nm-cloud-setup.timer", "systemctl disable --now nm-cloud-setup.timer nm-cloud-setup.service"},
		{"nm-cloud-setup", "nm-cloud-setup.service", "systemctl disable --now nm-cloud-setup.service"},
	} {
		if unitfile.Read(r.root, unit.unit) == unitfile.Enabled {
			r.Agents = append(r.Agents, doctor.Agent{Name: unit.name, File: unit.unit + " is enabled", Stop: routing.CommandsOf(unit.stop)})
			break
		}
	}
	// amazon-ec2-net-utils: its udev rule starts an instance of the unit for each interface.
	const policyRoutes = "policy-routes@.service"
	if r.exists("usr/lib/systemd/system/"+policyRoutes) && unitfile.Read(r.root, policyRoutes) != unitfile.Masked {
		r.Agents = append(r.Agents, doctor.Agent{
			Name: "amazon-ec2-net-utils", File: "/usr/lib/systemd/system/" + policyRoutes,
			Stop: routing.CommandsOf("systemctl mask " + policyRoutes),
		})
	}
	// Its ancestor for sysvinit and network-scripts.
	const functions = "etc/sysconfig/network-scripts/ec2net-functions"
	if r.exists(functions) {
		r.Agents = append(r.Agents, doctor.Agent{Name: "ec2-net-utils", File: "/" + functions})
	}
	// netplan(5), which cloud-init writes for.
	files, err := fs.ReadDir(r.root, "etc/netplan")
	if err != nil && r.exists("etc/netplan") {
		r.miss("/etc/netplan can only be read by root", doctor.CloudAgent)
	}
	for _, f := range files {
		name := path.Join("etc/netplan", f.Name())
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		text, err := r.text(name)
		if err != nil {
			r.miss(err.Error(), doctor.CloudAgent)
			continue
		}
		if !saysPolicy(text) {
			continue
		}
		program := "netplan"
		if strings.Contains(f.Name(), "cloud-init") {
			program = "cloud-init"
		}
		r.Agents = append(r.Agents, doctor.Agent{Name: program, File: "/" + name + " has routing-policy"})
	}
}

func (r *reading) exists(name string) bool {
	_, err := fs.Stat(r.root, name)
	return err == nil
}

// saysPolicy reports whether a file of netplan makes rules.
func saysPolicy(text []byte) bool {
	for line := range bytes.Lines(text) {
		line, _, _ = bytes.Cut(line, []byte("#"))
		if bytes.HasPrefix(bytes.TrimLeft(line, " \t"), []byte("routing-policy:")) {
			return true
		}
	}
	return false
}
