package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	nmName = "org.freedesktop.NetworkManager"
	nmPath = "/org/freedesktop/NetworkManager"
	nmLog  = labDir + "/NetworkManager.log"
)

const nmConfigText = `[main]
plugins=keyfile
auth-polkit=false
dns=none
rc-manager=unmanaged
hostname-mode=none
no-auto-default=*

[connectivity]
enabled=false

[logging]
level=%s
backend=syslog

%s
`

// StartNM starts NetworkManager and returns when it answers on the bus.
func (h *Host) StartNM(ctx context.Context) error {
	if p := h.process(&h.nm); p != nil {
		return fmt.Errorf("NetworkManager runs already (process %d)", p.Pid())
	}
	level := h.cfg.NMLogLevel
	if level == "" {
		level = "INFO"
	}
	conf := fmt.Sprintf(nmConfigText, level, h.cfg.NMConfig)
	if err := os.WriteFile("/etc/NetworkManager/NetworkManager.conf", []byte(conf), 0o644); err != nil {
		return err
	}
	p, err := start(ProcessConfig{
		Path: "NetworkManager",
		Args: []string{"--debug"}, // stays in the foreground and logs to standard error
		Root: h.cfg.Root, LogFile: nmLog,
	})
	if err != nil {
		return err
	}
	h.setProcess(&h.nm, p)
	if err := h.WaitNM(ctx); err != nil {
		return fmt.Errorf("starting NetworkManager: %w; its log ends:\n%s", err, h.NMLogTail(20))
	}
	return nil
}

// WaitNM waits until NetworkManager owns its name on the bus and answers.
func (h *Host) WaitNM(ctx context.Context) error {
	ctx, cancel := Within(ctx, 10*time.Second)
	defer cancel()
	conn, err := dbus.Connect(BusAddress, dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connecting to the bus: %w", err)
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	// Watch first, then look: the name may come between the two.
	err = conn.AddMatchSignalContext(ctx,
		dbus.WithMatchSender("org.freedesktop.DBus"),
		dbus.WithMatchInterface("org.freedesktop.DBus"),
		dbus.WithMatchMember("NameOwnerChanged"),
		dbus.WithMatchArg(0, nmName))
	if err != nil {
		return fmt.Errorf("watching the bus: %w", err)
	}
	ended := make(<-chan struct{})
	if p := h.process(&h.nm); p != nil {
		ended = p.Done()
	}
	for {
		var owned bool
		if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, nmName).Store(&owned); err != nil {
			return fmt.Errorf("asking the bus: %w", err)
		}
		if owned {
			// NetworkManager takes the name before it exports its objects.
			return Eventually(ctx, func() error {
				var version dbus.Variant
				err := conn.Object(nmName, nmPath).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, nmName, "Version").Store(&version)
				if err != nil {
					return fmt.Errorf("asking NetworkManager: %w", err)
				}
				return nil
			})
		}
		select {
		case <-signals:
		case <-ended:
			return errors.New("NetworkManager ended")
		case <-ctx.Done():
			return fmt.Errorf("waiting for NetworkManager on the bus: %w", context.Cause(ctx))
		}
	}
}

// StopNM ends NetworkManager with SIGTERM, as `systemctl stop` does: links keep
// their configuration.
func (h *Host) StopNM(ctx context.Context) error {
	if p := h.take(&h.nm); p != nil {
		return p.Stop(ctx)
	}
	return nil
}

// KillNM ends NetworkManager with SIGKILL.
func (h *Host) KillNM() error {
	if p := h.take(&h.nm); p != nil {
		return p.Kill()
	}
	return nil
}

// RestartNM is StopNM and StartNM.
func (h *Host) RestartNM(ctx context.Context) error {
	return errors.Join(h.StopNM(ctx), h.StartNM(ctx))
}

// NMPid is NetworkManager's process number, 0 when it does not run.
func (h *Host) NMPid() int {
	if p := h.process(&h.nm); p != nil {
		return p.Pid()
	}
	return 0
}

// NMLogPath is the file that NetworkManager logs to.
func (h *Host) NMLogPath() string { return nmLog }

// NMLogTail is the end of NetworkManager's log.
func (h *Host) NMLogTail(lines int) string {
	data, err := os.ReadFile(nmLog)
	if err != nil {
		return err.Error()
	}
	return Tail(string(data), lines)
}

// EnableDispatcher lets the bus start nm-dispatcher when NetworkManager asks for
// it; call it before activating anything. Scripts go to
// /etc/NetworkManager/dispatcher.d, owned by root and executable.
func (h *Host) EnableDispatcher() error {
	// Debian 12 has it in the first place, Debian 13 in the second.
	var path string
	for _, p := range []string{"/usr/lib/NetworkManager/nm-dispatcher", "/usr/libexec/nm-dispatcher"} {
		if _, err := os.Stat(filepath.Join(h.cfg.Root, p)); err == nil {
			path = p
		}
	}
	if path == "" {
		return errors.New("nm-dispatcher not found: apt-get install network-manager")
	}
	exec := path + " --persist --debug"
	if h.cfg.Root != "" {
		exec = "/usr/sbin/chroot " + h.cfg.Root + " " + exec
	}
	for _, dir := range []string{"pre-up.d", "pre-down.d", "no-wait.d"} {
		if err := os.MkdirAll(filepath.Join("/etc/NetworkManager/dispatcher.d", dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(busServices, 0o755); err != nil {
		return err
	}
	service := "[D-BUS Service]\nName=org.freedesktop.nm_dispatcher\nUser=root\nExec=" + exec + "\n"
	if err := os.WriteFile(filepath.Join(busServices, "org.freedesktop.nm_dispatcher.service"), []byte(service), 0o644); err != nil {
		return err
	}
	if p := h.process(&h.bus); p != nil {
		return p.Signal(unix.SIGHUP) // reread the services
	}
	return nil
}

// mountRoot connects another release's root directory to the lab: the same /run
// with the bus, the same configuration and state of NetworkManager.
func (h *Host) mountRoot() error {
	root, err := filepath.Abs(h.cfg.Root)
	if err != nil {
		return err
	}
	h.cfg.Root = root
	for _, program := range []string{"NetworkManager", "nmcli"} {
		if _, err := LookPath(root, program); err != nil {
			return fmt.Errorf("%w: install network-manager in %s", err, root)
		}
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/etc/NetworkManager", "/var/lib/NetworkManager", "/usr/lib/NetworkManager/conf.d", "/usr/lib/NetworkManager/system-connections"} {
		target := filepath.Join(root, dir)
		if _, err := os.Stat(target); err != nil {
			continue // no such directory in that release, so nothing to hide or share
		}
		if err := unix.Mount(dir, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mounting %s on %s: %w", dir, target, err)
		}
		h.onClose(func() error { return unix.Unmount(target, unix.MNT_DETACH) })
	}
	return nil
}
