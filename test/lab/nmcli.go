package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NMCLI runs nmcli and returns what it prints; an error has it as well.
func (h *Host) NMCLI(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := Within(ctx, 60*time.Second)
	defer cancel()
	return command(ctx, h.cfg.Root, "nmcli", args...)
}

func (h *Host) nmcli(ctx context.Context, args ...string) error {
	_, err := h.NMCLI(ctx, args...)
	return err
}

// AddProfile adds an Ethernet profile that is not activated by itself. Settings
// are pairs for nmcli: "ipv4.method", "manual", "ipv4.addresses", ...
func (h *Host) AddProfile(ctx context.Context, name, iface string, settings ...string) error {
	return h.nmcli(ctx, append([]string{
		"connection", "add", "type", "ethernet", "con-name", name, "ifname", iface, "autoconnect", "no",
	}, settings...)...)
}

// WriteProfile writes a keyfile, which is faster than AddProfile when there are
// many; ReloadProfiles makes NetworkManager read them. Settings are
// "section.key=value" in keyfile syntax (ipv4.address1=192.0.2.5/24).
func (h *Host) WriteProfile(name, iface string, settings ...string) error {
	sections := map[string][]string{"connection": {
		"id=" + name, "uuid=" + profileUUID(name), "type=ethernet", "interface-name=" + iface, "autoconnect=false",
	}}
	for _, s := range settings {
		section, line, ok := strings.Cut(s, ".")
		if !ok || !strings.Contains(line, "=") {
			return fmt.Errorf("setting %q of profile %s is not section.key=value", s, name)
		}
		sections[section] = append(sections[section], line)
	}
	var b strings.Builder
	for _, section := range slices.Sorted(maps.Keys(sections)) {
		fmt.Fprintf(&b, "[%s]\n%s\n\n", section, strings.Join(sections[section], "\n"))
	}
	path := filepath.Join("/etc/NetworkManager/system-connections", name+".nmconnection")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("writing profile %s: %w", name, err)
	}
	return nil
}

// ReloadProfiles makes NetworkManager read the profiles on disk.
func (h *Host) ReloadProfiles(ctx context.Context) error {
	return h.nmcli(ctx, "connection", "reload")
}

// profileUUID is the same for the same name.
func profileUUID(name string) string {
	sum := sha256.Sum256([]byte(name))
	sum[6], sum[8] = sum[6]&0x0f|0x40, sum[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// Modify changes a profile; an active link takes it with Up or Reapply.
func (h *Host) Modify(ctx context.Context, profile string, settings ...string) error {
	return h.nmcli(ctx, append([]string{"connection", "modify", profile}, settings...)...)
}

// Delete removes a profile.
func (h *Host) Delete(ctx context.Context, profile string) error {
	return h.nmcli(ctx, "connection", "delete", profile)
}

// Up activates a profile and waits until NetworkManager calls it activated,
// which one address family is enough for.
func (h *Host) Up(ctx context.Context, profile string) error {
	return h.nmcli(ctx, "connection", "up", profile)
}

// Down deactivates a profile.
func (h *Host) Down(ctx context.Context, profile string) error {
	return h.nmcli(ctx, "connection", "down", profile)
}

// Reapply applies the changes of a profile to its active device.
func (h *Host) Reapply(ctx context.Context, iface string) error {
	return h.nmcli(ctx, "device", "reapply", iface)
}

// ModifyDevice changes an active device and not its profile, as nmcli device
// modify does: "+ipv4.addresses", "192.0.2.9/24".
func (h *Host) ModifyDevice(ctx context.Context, iface string, settings ...string) error {
	return h.nmcli(ctx, append([]string{"device", "modify", iface}, settings...)...)
}

// Addrs lists a device's usable addresses of global scope, in the kernel's
// order: neither tentative nor failed.
func (h *Host) Addrs(dev string, family Family) ([]netip.Prefix, error) {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", dev, err)
	}
	list, err := netlink.AddrList(link, int(family))
	if err != nil {
		return nil, fmt.Errorf("listing addresses of %s: %w", dev, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			continue
		}
		ip, _ := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		out = append(out, netip.PrefixFrom(ip.Unmap(), bits))
	}
	return out, nil
}

// WaitAddr waits until a device has a usable address of global scope and returns
// the first.
func (h *Host) WaitAddr(ctx context.Context, dev string, family Family) (netip.Addr, error) {
	return h.waitAddr(ctx, dev, family, func(netip.Addr) bool { return true }, "an address")
}

// WaitAddrIn is WaitAddr for an address inside a prefix.
func (h *Host) WaitAddrIn(ctx context.Context, dev string, prefix netip.Prefix) (netip.Addr, error) {
	family := IPv4
	if prefix.Addr().Is6() {
		family = IPv6
	}
	return h.waitAddr(ctx, dev, family, prefix.Masked().Contains, "an address in "+prefix.Masked().String())
}

func (h *Host) waitAddr(ctx context.Context, dev string, family Family, want func(netip.Addr) bool, what string) (netip.Addr, error) {
	ctx, cancel := Within(ctx, 20*time.Second)
	defer cancel()
	var found netip.Addr
	err := Eventually(ctx, func() error {
		addrs, err := h.Addrs(dev, family)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if want(a.Addr()) {
				found = a.Addr()
				return nil
			}
		}
		return fmt.Errorf("%s has %v", dev, addrs)
	})
	if err != nil {
		return found, fmt.Errorf("waiting for %s of %v on %s: %w", what, family, dev, err)
	}
	return found, nil
}

// WaitDeviceState waits until NetworkManager gives a device this state, in the
// words of nmcli: connected, disconnected, unavailable, unmanaged.
func (h *Host) WaitDeviceState(ctx context.Context, dev, state string) error {
	ctx, cancel := Within(ctx, 20*time.Second)
	defer cancel()
	return Eventually(ctx, func() error {
		out, err := h.NMCLI(ctx, "-t", "-f", "DEVICE,STATE", "device", "status")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if name, got, _ := strings.Cut(strings.TrimSpace(line), ":"); name == dev {
				if got == state {
					return nil
				}
				return fmt.Errorf("device %s is %s, not %s", dev, got, state)
			}
		}
		return errors.New("NetworkManager knows no device " + dev)
	})
}
