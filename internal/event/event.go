// Package event names the kinds of log lines, so that programs need not parse sentences. A line with an event carries its MESSAGE_ID in the journal
// (systemd.journal-fields(7)), and the catalog explains it: `journalctl -x`.
package event

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// Key is the attribute that names the event of a line.
const Key = "event"

// LevelNotice is for lines that an administrator wants to see and need not act on. The
// journal calls it "notice".
const LevelNotice = slog.LevelInfo + 2

// An Event is one kind of line.
type Event string

// Events.
const (
	Started       Event = "started"
	Ready         Event = "ready"
	Stopped       Event = "stopped"
	Failed        Event = "failed"
	Waiting       Event = "waiting"
	ConfigLoaded  Event = "configuration-loaded"
	LinkAdded     Event = "link-added"
	LinkChanged   Event = "link-changed"
	LinkRemoved   Event = "link-removed"
	Repaired      Event = "repaired"
	SteppedOver   Event = "stepped-over"
	Problem       Event = "problem"
	Solved        Event = "problem-solved"
	TableLeased   Event = "table-leased"
	LeaseEnded    Event = "lease-ended"
	RouteMoved    Event = "route-moved"
	StandIn       Event = "stand-in"
	SwitchedOff   Event = "switched-off"
	SwitchedOn    Event = "switched-on"
	DatabaseMoved Event = "database-moved"
	DaemonHung    Event = "daemon-hung"
	LetGo         Event = "let-go"
	UplinkDead    Event = "uplink-dead"
	UplinkAlive   Event = "uplink-alive"
)

// ids are random 128-bit numbers (systemd-id128 new). They never change.
var ids = map[Event]string{ //nolint:gochecknoglobals // a constant in all but name
	Started:       "ec8505bab9d4443590022c6e01ef664e",
	Ready:         "da0c71a0bf564ea3a1c48e86435d51c7",
	Stopped:       "f2c50526ae6f4b1e81fe77a7d73eab57",
	Failed:        "d7a6306f01d94dc3983913af99c939a9",
	Waiting:       "079d8ee63aca48599d78a4a412259f4d",
	ConfigLoaded:  "ca3db94097dc4c4c9d82ffbcf626f00d",
	LinkAdded:     "1888f056e4134a4d96e92005d6552c76",
	LinkChanged:   "bbdee0c3f1dd48628ea9565598ccf096",
	LinkRemoved:   "5956a590a95a423eafb64f50547c53bf",
	Repaired:      "4ac3e865580e48e4b9ce54ef3d6a38c6",
	SteppedOver:   "9ef6523730834d2298cbc0079e51581f",
	Problem:       "6ca7e664c1974466b737c24ca85dce00",
	Solved:        "bdec644775ff423e84a71421ce0c8256",
	TableLeased:   "acfa2f679c7744e78a125e319a91e0e1",
	LeaseEnded:    "519affd62c0348f383b0b139f73704bf",
	RouteMoved:    "f92f43ac74904156aa656f15c55a3fe1",
	StandIn:       "941c3bbb4dcc4f22bd36b9f931cbd2dd",
	SwitchedOff:   "2b9813536cd94eeb921b80f30514c9de",
	SwitchedOn:    "42a95d40cea640d69a61a325d883075d",
	DatabaseMoved: "8da55950b69d4a11bdef03856f59e66c",
	DaemonHung:    "17d82c3d19cc475d8dd30b79ab95f039",
	LetGo:         "275e3776879a420b8937b843f1cbf75d",
	UplinkDead:    "3633c8aa9d6640bd840441d887417763",
	UplinkAlive:   "ac4ccc935c3e49419b4c7f61dc957726",
}

// All returns every event, sorted.
func All() []Event { return slices.Sorted(maps.Keys(ids)) }

// MessageID returns the MESSAGE_ID of the event, empty for an unknown one.
func (e Event) MessageID() string { return ids[e] }

// Is is the attribute of a line about e.
func Is(e Event) slog.Attr { return slog.String(Key, string(e)) }

// forPrograms begins the keys of attributes that are not in the sentence.
const forPrograms = "field:"

// Field is an attribute for programs: a field of the journal whose content the sentence has
// in other words. A line may have several with one key.
func Field(key, value string) slog.Attr { return slog.String(forPrograms+key, value) }

// IsField returns the key of an attribute, and whether it is for programs only.
func IsField(key string) (string, bool) { return strings.CutPrefix(key, forPrograms) }
