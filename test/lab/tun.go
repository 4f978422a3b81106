package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Tun is a tunnel of the host as a VPN has it: a point-to-point device without
// link layer (tun(4)) whose other end is this program. It has carrier, records
// every packet that the host sends into it, and answers nothing.
type Tun struct {
	name string
	file *os.File
	raw  syscall.RawConn
	done chan struct{}

	mu      sync.Mutex
	buf     []byte
	packets []Packet
}

// NewTun creates a tunnel that is up and has no addresses. Nobody configures it: to
// NetworkManager it is a device that another program made.
func (h *Host) NewTun(name string) (*Tun, error) {
	if !inside {
		return nil, errOutside
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/net/tun (does the kernel have it? modprobe tun): %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("creating tunnel %s: %w", name, err)
	}
	// The poller can wait for the device only once it is attached.
	t := &Tun{name: name, file: os.NewFile(uintptr(fd), name), done: make(chan struct{}), buf: make([]byte, 1<<16)}
	if t.raw, err = t.file.SyscallConn(); err == nil {
		// No link-local address: the kernel makes up another one each time.
		err = errors.Join(sysctl("net/ipv6/conf/"+name+"/addr_gen_mode", "1"), setAdmin(pkgHandle, name, true))
	}
	if err != nil {
		_ = t.file.Close()
		return nil, fmt.Errorf("setting tunnel %s up: %w", name, err)
	}
	h.onClose(t.Close)
	go t.read()
	return t, nil
}

// Name is the device's name.
func (t *Tun) Name() string { return t.name }

// Close removes the device. Closing twice is not an error.
func (t *Tun) Close() error {
	err := t.file.Close()
	<-t.done
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// SetUp sets the device up or down. Its routes go when it goes down.
func (t *Tun) SetUp(up bool) error { return setAdmin(pkgHandle, t.name, up) }

func (t *Tun) read() {
	defer close(t.done)
	_ = t.raw.Read(func(fd uintptr) bool {
		t.drain(int(fd))
		return false // wait for more
	})
}

// drain takes everything that the device holds; see Capture.drain.
func (t *Tun) drain(fd int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		n, err := unix.Read(fd, t.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n < 1 { // nothing more, or down
			return
		}
		frame := make([]byte, 14, 14+n)
		kind := uint16(unix.ETH_P_IP)
		if t.buf[0]>>4 == 6 {
			kind = unix.ETH_P_IPV6
		}
		binary.BigEndian.PutUint16(frame[12:], kind)
		if p, ok := decode(append(frame, t.buf[:n]...)); ok {
			p.Link, p.Length = t.name, n
			t.packets = append(t.packets, p)
		}
	}
}

// Matching lists the packets so far that a function accepts.
func (t *Tun) Matching(want func(Packet) bool) ([]Packet, error) {
	_ = t.raw.Control(func(fd uintptr) { t.drain(int(fd)) })
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Packet
	for _, p := range t.packets {
		if want(p) {
			out = append(out, p)
		}
	}
	return out, nil
}

// Index is the device's interface index.
func (t *Tun) Index() (int, error) {
	link, err := netlink.LinkByName(t.name)
	if err != nil {
		return 0, fmt.Errorf("finding %s: %w", t.name, err)
	}
	return link.Attrs().Index, nil
}
