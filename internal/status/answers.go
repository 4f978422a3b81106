package status

import "multihomed/internal/escape"

// Answers says on which link forwarded packets are answered.
type Answers struct {
	// Families has both.
	Families []AnsweredFamily `json:"families"`
	// Dropped counts the packets that the fence dropped, because they would have left by another
	// uplink than that of their source; it begins anew with the table.
	Dropped uint64 `json:"dropped_packets"`
}

// AnsweredFamily is one family of [Answers].
type AnsweredFamily struct {
	// Family is "ipv4" or "ipv6".
	Family string `json:"family"`
	// Answers says that forwarded packets are answered on the link on which they were asked, Fence
	// that packets with an address of one uplink do not leave by another one.
	Answers bool `json:"answers"`
	Fence   bool `json:"fence"`
	// Reason is one word, Why says it in words.
	Reason string `json:"reason"`
	Why    string `json:"why"`
	// Marked counts the addresses by which packets are marked.
	Marked int `json:"addresses"`
}

// Escape makes its sentences printable.
func (a *Answers) Escape() {
	for i := range a.Families {
		a.Families[i].Why = escape.Text(a.Families[i].Why)
	}
}
