package lab

import (
	"context"
	"fmt"
	"os"
)

// BusAddress is where the lab's system bus listens, which is where everybody
// looks for it.
const BusAddress = "unix:path=/run/dbus/system_bus_socket"

const (
	busSocket   = "/run/dbus/system_bus_socket"
	busConfig   = labDir + "/dbus.conf"
	busServices = labDir + "/dbus-services"
)

// The stock system.conf would do but for activation: it may start anything that
// is installed on the machine, through a setuid helper. Here, only what is in
// busServices can be activated, by the bus itself.
const busConfigText = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>%[1]s</listen>
  <servicedir>%[2]s</servicedir>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus" send_member="UpdateActivationEnvironment"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
    <allow own="org.multihomed1"/>
  </policy>
  <policy context="default">
    <allow send_destination="org.multihomed1"/>
  </policy>
  <includedir>%[3]s/usr/share/dbus-1/system.d</includedir>
  <includedir>%[3]s/etc/dbus-1/system.d</includedir>
</busconfig>
`

// StartBus starts the system bus and returns when it accepts connections.
func (h *Host) StartBus(ctx context.Context) error {
	if p := h.process(&h.bus); p != nil {
		return fmt.Errorf("the bus runs already (process %d)", p.Pid())
	}
	if err := os.MkdirAll(busServices, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf(busConfigText, BusAddress, busServices, h.cfg.Root)
	if err := os.WriteFile(busConfig, []byte(text), 0o644); err != nil {
		return err
	}
	// A bus that was killed leaves its socket, and its successor takes over.
	if err := os.Remove(busSocket); err != nil && !os.IsNotExist(err) {
		return err
	}
	p, err := start(ProcessConfig{
		Path: "dbus-daemon",
		Args: []string{"--config-file=" + busConfig, "--nofork", "--nopidfile", "--print-address=1"},
	})
	if err != nil {
		return err
	}
	h.setProcess(&h.bus, p)
	if _, err := p.WaitLine(ctx, busSocket); err != nil { // the address, printed when it listens
		return fmt.Errorf("starting the bus: %w", err)
	}
	return nil
}

// StopBus ends the bus with SIGTERM. NetworkManager survives it, unreachable.
func (h *Host) StopBus(ctx context.Context) error {
	if p := h.take(&h.bus); p != nil {
		return p.Stop(ctx)
	}
	return nil
}

// KillBus ends the bus with SIGKILL.
func (h *Host) KillBus() error {
	if p := h.take(&h.bus); p != nil {
		return p.Kill()
	}
	return nil
}

// process returns the process that a field of the host holds, unless it has
// ended.
func (h *Host) process(field **Process) *Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	if *field == nil {
		return nil
	}
	select {
	case <-(*field).done:
		*field = nil
	default:
	}
	return *field
}

func (h *Host) setProcess(field **Process, p *Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*field = p
}

func (h *Host) take(field **Process) *Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := *field
	*field = nil
	return p
}
