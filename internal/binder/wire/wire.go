// Package wire is the protocol between `multihomectl run` and multihomed-binder: one request with a cgroup, one answer,
// each a datagram of an AF_UNIX socket of type SOCK_SEQPACKET (unix(7)).
//
//	request: version, name of the link; with it the descriptor of the cgroup's directory (SCM_RIGHTS)
//	answer:  version, code, text
//
// Both sides decode strictly.
package wire

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"multihomed/routing"
)

const (
	// version is the first byte of each datagram. It comes first so that a program of another version can be told.
	version = 1
	// MaxRequest is the longest request, in bytes.
	MaxRequest = 1 + routing.MaxInterfaceName
	// MaxText is the longest text of an answer.
	MaxText = 1024
	// MaxAnswer is the longest answer.
	MaxAnswer = 2 + MaxText
)

// A Code says how a request ended.
type Code uint8

// The codes.
const (
	// Bound says that the cgroup is bound to the link. The text is empty, or says what the binding lacks.
	Bound Code = iota + 1
	// BadRequest says that the datagram is no request, or came without a descriptor.
	BadRequest
	// BadCgroup says that the descriptor is no cgroup that the caller may bind.
	BadCgroup
	// Denied says that the configuration does not let the caller bind anything.
	Denied
	// NoLink says that the link does not exist, or cannot be bound to now.
	NoLink
	// Busy says that there are too many requests. Another attempt may succeed.
	Busy
	// Unable says that the helper or the kernel cannot bind cgroups: another way may work.
	Unable
	// Failed says that something else went wrong.
	Failed
)

// An Answer is what the helper says.
type Answer struct {
	Code Code
	// Text is for the user. Of a refusal it says how to fix it.
	Text string
}

// EncodeRequest appends a request to out.
func EncodeRequest(out []byte, link string) ([]byte, error) {
	if err := routing.CheckInterfaceName(link); err != nil {
		return out, err
	}
	return append(append(out, version), link...), nil
}

// DecodeRequest reads the link of a request.
func DecodeRequest(datagram []byte) (link string, err error) {
	if err := checkVersion(datagram); err != nil {
		return "", err
	}
	link = string(datagram[1:])
	if err := routing.CheckInterfaceName(link); err != nil {
		return "", err
	}
	return link, nil
}

// EncodeAnswer appends an answer to out. A text that is too long is cut.
func EncodeAnswer(out []byte, a Answer) []byte {
	text := a.Text
	if len(text) > MaxText {
		text = text[:MaxText]
		for !utf8.ValidString(text) && len(text) > MaxText-utf8.UTFMax {
			text = text[:len(text)-1]
		}
	}
	return append(append(out, version, byte(a.Code)), text...)
}

// DecodeAnswer reads an answer.
func DecodeAnswer(datagram []byte) (Answer, error) {
	if err := checkVersion(datagram); err != nil {
		return Answer{}, err
	}
	if len(datagram) < 2 || len(datagram) > MaxAnswer {
		return Answer{}, errors.New("an answer of an impossible length")
	}
	a := Answer{Code: Code(datagram[1]), Text: string(datagram[2:])}
	if a.Code < Bound || a.Code > Failed {
		return Answer{}, fmt.Errorf("an answer with the unknown code %d", a.Code)
	}
	return a, nil
}

func checkVersion(datagram []byte) error {
	if len(datagram) == 0 {
		return errors.New("an empty datagram")
	}
	if datagram[0] != version {
		return fmt.Errorf("version %d of the protocol, and this program has version %d; to fix: install one version of multihomed, and restart multihomed-binder.socket", datagram[0], version)
	}
	return nil
}
