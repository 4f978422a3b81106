package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"syscall"
	"time"
)

// version is the first byte of each datagram. The prober and the daemon come from one package, but
// during an upgrade one of them may be older: it then reads a version it does not know, and the
// connection ends.
const version = 1

// The types of datagrams: their second byte.
const (
	typeProbe = iota + 1
	typeLook
	typePing
	typeSent
	typeAnswered
	typeFailed
	typeUnsent
	typeLooked
	typePong
)

// maxErrno is the greatest error number (MAX_ERRNO in include/linux/err.h).
const maxErrno = 4095

// Numbers are big-endian, of 1 to 8 bytes. An address is its length (0, 4 or 16) and its bytes. A list is
// its length in 2 bytes and its elements.
//
//	request: version, type, ID, then for
//	  Probe: kind, device (4), source, target's address, target's port (2)
//	  Look:  list of (address, device), list of (address, bits), list of device
//	report:  version, type, ID, horizon (8), at (8), then for
//	  Answered: round trip (8)
//	  Failed, Unsent: error number (2)
//	  Looked: cost (8), list of (count (4), proof (8), silence (8)), list of (rx (8), tx (8))

// EncodeRequest appends a request to out.
func EncodeRequest(out []byte, r Request) ([]byte, error) {
	w := writer{out: out}
	if err := r.request(&w); err != nil {
		return out, fmt.Errorf("encoding a request to the prober: %w", err)
	}
	return w.out, nil
}

// EncodeReport appends a report to out.
func EncodeReport(out []byte, r Report, horizon Time) ([]byte, error) {
	w := writer{out: out, horizon: horizon}
	if err := r.report(&w); err != nil {
		return out, fmt.Errorf("encoding a report of the prober: %w", err)
	}
	return w.out, nil
}

// DecodeRequest reads a request. What it returns shares nothing with the datagram.
func DecodeRequest(datagram []byte) (Request, error) {
	r := reader{in: datagram}
	request, err := r.request()
	if err != nil {
		return nil, fmt.Errorf("decoding a request to the prober: %w", err)
	}
	return request, nil
}

// DecodeReport reads a report and its horizon. What it returns shares nothing with the datagram.
func DecodeReport(datagram []byte) (Report, Time, error) {
	r := reader{in: datagram}
	report, horizon, err := r.report()
	if err != nil {
		return nil, 0, fmt.Errorf("decoding a report of the prober: %w", err)
	}
	return report, horizon, nil
}

func (p Probe) request(w *writer) error {
	if err := p.check(); err != nil {
		return err
	}
	w.head(typeProbe, p.ID)
	w.out = append(w.out, byte(p.Kind))
	w.device(p.Device)
	w.address(p.Source)
	w.address(p.Target.Addr())
	w.out = binary.BigEndian.AppendUint16(w.out, p.Target.Port())
	return nil
}

// check refuses what no honest client asks for.
func (p Probe) check() error {
	target := p.Target.Addr()
	switch {
	case p.Kind < DNS || p.Kind > ICMP:
		return fmt.Errorf("unknown kind of probe %d", p.Kind)
	case badDevice(p.Device):
		return fmt.Errorf("a device with index %d", p.Device)
	case !plain(target) || target.IsUnspecified() || target.IsMulticast() || target.IsLoopback() || target == broadcast:
		return fmt.Errorf("the target %v is no address of another host", target)
	case (p.Target.Port() == 0) != (p.Kind == ICMP):
		return fmt.Errorf("a probe of kind %v to port %d", p.Kind, p.Target.Port())
	case p.Source == netip.Addr{}:
		return nil
	case p.Source.BitLen() != target.BitLen():
		return fmt.Errorf("the source %v and the target %v are of different families", p.Source, target)
	}
	return checkSource(p.Source)
}

//nolint:gochecknoglobals // a constant in all but name
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func checkSource(a netip.Addr) error {
	if !plain(a) || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == broadcast {
		return fmt.Errorf("the source %v is no address of a link", a)
	}
	return nil
}

// plain reports whether an address has one form only: no zone, and no IPv4 address inside of IPv6.
func plain(a netip.Addr) bool { return a.IsValid() && a.Zone() == "" && !a.Is4In6() }

func badDevice(index int) bool { return index < 1 || index > math.MaxInt32 }

func (l Look) request(w *writer) error {
	if err := l.check(); err != nil {
		return err
	}
	w.head(typeLook, l.ID)
	w.length(len(l.Sources))
	for _, s := range l.Sources {
		w.address(s.Addr)
		w.device(s.Device)
	}
	w.length(len(l.Near))
	for _, p := range l.Near {
		w.address(p.Addr())
		w.out = append(w.out, byte(p.Bits())) //nolint:gosec // At most 128.
	}
	w.length(len(l.Devices))
	for _, d := range l.Devices {
		w.device(d)
	}
	return nil
}

func (l Look) check() error {
	switch {
	case len(l.Sources) > MaxSources:
		return fmt.Errorf("%d sources; at most %d can be looked at", len(l.Sources), MaxSources)
	case len(l.Near) > MaxNear:
		return fmt.Errorf("%d near networks; at most %d can be named", len(l.Near), MaxNear)
	case len(l.Devices) > MaxDevices:
		return fmt.Errorf("%d devices; at most %d can be looked at", len(l.Devices), MaxDevices)
	}
	for _, s := range l.Sources {
		if badDevice(s.Device) {
			return fmt.Errorf("a device with index %d", s.Device)
		}
		if err := checkSource(s.Addr); err != nil {
			return err
		}
	}
	for _, p := range l.Near {
		if !p.IsValid() || !plain(p.Addr()) || p != p.Masked() {
			return fmt.Errorf("the near network %v is none", p)
		}
	}
	for _, d := range l.Devices {
		if badDevice(d) {
			return fmt.Errorf("a device with index %d", d)
		}
	}
	return nil
}

func (p Ping) request(w *writer) error {
	w.head(typePing, p.ID)
	return nil
}

func (s Sent) report(w *writer) error   { return w.reportHead(typeSent, s.ID, s.At) }
func (p Pong) report(w *writer) error   { return w.reportHead(typePong, p.ID, p.At) }
func (f Failed) report(w *writer) error { return w.failure(typeFailed, f.ID, f.At, f.Errno) }
func (u Unsent) report(w *writer) error { return w.failure(typeUnsent, u.ID, u.At, u.Errno) }

func (a Answered) report(w *writer) error {
	if err := a.check(); err != nil {
		return err
	}
	if err := w.reportHead(typeAnswered, a.ID, a.At); err != nil {
		return err
	}
	w.number(uint64(a.RTT)) //nolint:gosec // Checked.
	return nil
}

func (a Answered) check() error {
	if a.RTT < 0 || Time(a.RTT) > a.At {
		return fmt.Errorf("a round trip of %v, at %d", a.RTT, a.At)
	}
	return nil
}

func (l Looked) report(w *writer) error {
	if err := l.check(); err != nil {
		return err
	}
	if err := w.reportHead(typeLooked, l.ID, l.At); err != nil {
		return err
	}
	w.number(uint64(l.Cost)) //nolint:gosec // Checked.
	w.length(len(l.Connections))
	for _, c := range l.Connections {
		w.out = binary.BigEndian.AppendUint32(w.out, uint32(c.Count)) //nolint:gosec // Checked.
		w.number(uint64(c.Proof))                                     //nolint:gosec // Checked.
		w.number(uint64(c.Silence))                                   //nolint:gosec // Checked.
	}
	w.length(len(l.Devices))
	for _, d := range l.Devices {
		w.number(d.RxPackets)
		w.number(d.TxPackets)
	}
	return nil
}

func (l Looked) check() error {
	if len(l.Connections) > MaxSources || len(l.Devices) > MaxDevices {
		return fmt.Errorf("a look at %d sources and %d devices", len(l.Connections), len(l.Devices))
	}
	if l.Cost < 0 {
		return fmt.Errorf("a cost of %v", l.Cost)
	}
	for _, c := range l.Connections {
		switch {
		case c.Count < 0 || c.Count > math.MaxInt32:
			return fmt.Errorf("%d connections", c.Count)
		case c.Proof < 0 || c.Proof > l.At:
			return fmt.Errorf("a proof of the time %d, seen at %d", c.Proof, l.At)
		case c.Silence < 0 || Time(c.Silence) > l.At:
			return fmt.Errorf("a silence of %v, seen at %d", c.Silence, l.At)
		case c.Count == 0 && c != Connections{}:
			return errors.New("a proof or a silence without connections")
		}
	}
	return nil
}

// A writer appends to a datagram.
type writer struct {
	out     []byte
	horizon Time
}

func (w *writer) head(kind byte, id uint64) {
	w.out = append(w.out, version, kind)
	w.number(id)
}

func (w *writer) reportHead(kind byte, id uint64, at Time) error {
	if w.horizon < 0 || at < 0 {
		return fmt.Errorf("a time of %d, with a horizon of %d", at, w.horizon)
	}
	w.head(kind, id)
	w.number(uint64(w.horizon))
	w.number(uint64(at))
	return nil
}

func (w *writer) failure(kind byte, id uint64, at Time, errno syscall.Errno) error {
	if errno == 0 || errno > maxErrno {
		return fmt.Errorf("the error number %d", uint(errno))
	}
	if err := w.reportHead(kind, id, at); err != nil {
		return err
	}
	w.out = binary.BigEndian.AppendUint16(w.out, uint16(errno))
	return nil
}

func (w *writer) number(n uint64) { w.out = binary.BigEndian.AppendUint64(w.out, n) }

func (w *writer) length(n int) { w.out = binary.BigEndian.AppendUint16(w.out, uint16(n)) } //nolint:gosec // Checked.

func (w *writer) device(index int) {
	w.out = binary.BigEndian.AppendUint32(w.out, uint32(index)) //nolint:gosec // Checked.
}

func (w *writer) address(a netip.Addr) {
	w.out = append(w.out, byte(a.BitLen()/8)) //nolint:gosec // At most 16.
	w.out = append(w.out, a.AsSlice()...)
}

// Errors of decoding.
var (
	errShort  = errors.New("the datagram ends too early")
	errLong   = errors.New("the datagram goes on behind its end")
	errLength = errors.New("the datagram is longer than any honest one")
)

// A reader takes a datagram apart. After an error it returns zeros.
type reader struct {
	in  []byte
	err error
}

func (r *reader) request() (Request, error) {
	kind, id := r.head()
	switch kind {
	case typeProbe:
		p := Probe{ID: id, Kind: Kind(r.byte()), Device: r.device(), Source: r.address()}
		p.Target = netip.AddrPortFrom(r.address(), r.uint16())
		return p, r.end(p.check)
	case typeLook:
		l := Look{ID: id}
		l.Sources = list(r, MaxSources, func() Source { return Source{Addr: r.address(), Device: r.device()} })
		l.Near = list(r, MaxNear, func() netip.Prefix { return netip.PrefixFrom(r.address(), int(r.byte())) })
		l.Devices = list(r, MaxDevices, r.device)
		return l, r.end(l.check)
	case typePing:
		return Ping{ID: id}, r.end(nil)
	}
	return nil, r.unknown(kind)
}

func (r *reader) report() (Report, Time, error) {
	kind, id := r.head()
	horizon, at := r.time(), r.time()
	switch kind {
	case typeSent:
		return Sent{ID: id, At: at}, horizon, r.end(nil)
	case typeAnswered:
		a := Answered{ID: id, At: at, RTT: time.Duration(r.time())}
		return a, horizon, r.end(a.check)
	case typePong:
		return Pong{ID: id, At: at}, horizon, r.end(nil)
	case typeFailed:
		return Failed{ID: id, At: at, Errno: r.errno()}, horizon, r.end(nil)
	case typeUnsent:
		return Unsent{ID: id, At: at, Errno: r.errno()}, horizon, r.end(nil)
	case typeLooked:
		l := Looked{ID: id, At: at, Cost: time.Duration(r.time())}
		l.Connections = list(r, MaxSources, func() Connections {
			return Connections{Count: int(r.uint32()), Proof: r.time(), Silence: time.Duration(r.time())}
		})
		l.Devices = list(r, MaxDevices, func() Counters { return Counters{RxPackets: r.uint64(), TxPackets: r.uint64()} })
		return l, horizon, r.end(l.check)
	}
	return nil, 0, r.unknown(kind)
}

// end returns the first error: of the bytes, or of the values that they hold.
func (r *reader) end(check func() error) error {
	if r.err == nil && len(r.in) > 0 {
		r.err = errLong
	}
	if r.err == nil && check != nil {
		r.err = check()
	}
	return r.err
}

func (r *reader) unknown(kind byte) error {
	r.fail(fmt.Errorf("unknown type of datagram %d", kind))
	return r.err
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.in = nil
}

func (r *reader) head() (kind byte, id uint64) {
	if len(r.in) > MaxDatagram {
		r.fail(errLength)
	}
	if v := r.byte(); v != version && r.err == nil {
		r.fail(fmt.Errorf("version %d of the protocol; this program has version %d", v, version))
	}
	return r.byte(), r.uint64()
}

// take returns the next n bytes, and zeros where there are fewer.
func (r *reader) take(n int) []byte {
	if len(r.in) < n {
		r.fail(errShort)
		return make([]byte, n)
	}
	taken := r.in[:n]
	r.in = r.in[n:]
	return taken
}

func (r *reader) byte() byte     { return r.take(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) time() Time {
	n := r.uint64()
	if n > math.MaxInt64 {
		r.fail(fmt.Errorf("a time of %d ns", n))
		return 0
	}
	return Time(n)
}

func (r *reader) errno() syscall.Errno {
	n := r.uint16()
	if n == 0 || n > maxErrno {
		r.fail(fmt.Errorf("the error number %d", n))
	}
	return syscall.Errno(n)
}

// device reads an interface index; check refuses one that cannot be.
func (r *reader) device() int {
	n := r.uint32()
	if n > math.MaxInt32 {
		return 0
	}
	return int(n)
}

func (r *reader) address() netip.Addr {
	switch n := r.byte(); n {
	case 0:
		return netip.Addr{}
	case 4:
		return netip.AddrFrom4([4]byte(r.take(4)))
	case 16:
		return netip.AddrFrom16([16]byte(r.take(16)))
	default:
		r.fail(fmt.Errorf("an address of %d bytes", n))
		return netip.Addr{}
	}
}

// list reads a list of at most a number of elements. An empty one is nil.
func list[T any](r *reader, most int, element func() T) []T {
	n := int(r.uint16())
	if n > most {
		r.fail(fmt.Errorf("a list of %d elements; %d is the most", n, most))
		return nil
	}
	var all []T
	for range n {
		e := element()
		if r.err != nil {
			return nil
		}
		all = append(all, e)
	}
	return all
}
