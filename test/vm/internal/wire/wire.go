// Package wire is what a test and the guest of its virtual machine say to each
// other: frames on a virtio-serial port (Virtual I/O Device 1.2, 5.3), which is a
// stream of bytes. A frame is a header of 9 bytes, kind, command and length, the
// numbers big-endian, and its payload.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
)

// PortName is the name of the port, as in /dev/virtio-ports.
const PortName = "multihomed.test"

// Kind says what a frame is.
type Kind byte

// Kinds of frames.
const (
	Hello  Kind = 'h' // guest: the agent runs
	Start  Kind = 's' // host: start a program, Command
	Write  Kind = 'w' // host: begin a file, File
	Data   Kind = 'd' // host: contents of the file; none ends it
	Kill   Kind = 'k' // host: end the program and what it has started
	Output Kind = 'o' // guest: what the program wrote
	Exit   Kind = 'e' // guest: the program has ended, or the file is there, Result
)

// MaxPayload is the longest payload that either side sends.
const MaxPayload = 1 << 20

// A Frame is one message; Command tells those of concurrent commands apart.
type Frame struct {
	Kind    Kind
	Command uint32
	Payload []byte
}

// Command is a program to start, as root and with no standard input.
type Command struct {
	Args []string
	Env  []string // all of it
	Dir  string
}

// File is a file to write; it appears with all of its contents.
type File struct {
	Path string
	Mode fs.FileMode
}

// Result is how a command ended.
type Result struct {
	Status int    // the exit status, or 128 plus the signal
	Err    string // why it did not run
}

// Boot is what the guest's first process has to know. It is the file BootFile of
// the initial file system.
type Boot struct {
	Whole    bool     // start the /sbin/init of the file tree, not only the agent
	Disk     bool     // changes go to the disk and not to memory
	Modules  []string // of the initial file system, in this order
	Out      string   // a directory of the host to be mounted at the same path
	Hostname string
	ID       string // the machine's, for a file tree without one
}

// BootFile is where Boot is, as JSON.
const BootFile = "/boot.json"

// The 9p shares of the host, by mount tag.
const (
	ShareRoot    = "root"    // the file tree, read-only
	ShareModules = "modules" // of the kernel, read-only
	ShareOut     = "out"     // Boot.Out
)

// JSON is a frame with a payload of v, which is one of this package's types.
func JSON(kind Kind, command uint32, v any) (Frame, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return Frame{}, fmt.Errorf("encoding a frame: %w", err)
	}
	return Frame{kind, command, payload}, nil
}

// Send writes a frame, in one call.
func Send(w io.Writer, f Frame) error {
	if len(f.Payload) > MaxPayload {
		return fmt.Errorf("sending a frame: %d bytes are too long", len(f.Payload))
	}
	b := make([]byte, 0, 9+len(f.Payload))
	b = append(b, byte(f.Kind))
	b = binary.BigEndian.AppendUint32(b, f.Command)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Payload)))
	b = append(b, f.Payload...)
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("sending a frame: %w", err)
	}
	return nil
}

// Receive reads a frame. It returns io.EOF when the other side has ended between
// two frames.
func Receive(r io.Reader) (Frame, error) {
	var header [9]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Frame{}, err // io.EOF has a meaning
	}
	f := Frame{Kind: Kind(header[0]), Command: binary.BigEndian.Uint32(header[1:])}
	length := binary.BigEndian.Uint32(header[5:])
	if length > MaxPayload {
		return Frame{}, fmt.Errorf("receiving a frame: %d bytes are too long", length)
	}
	f.Payload = make([]byte, length)
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		return Frame{}, fmt.Errorf("receiving a frame: %w", err)
	}
	return f, nil
}
