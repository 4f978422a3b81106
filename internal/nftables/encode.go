package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

// A batch is a series of messages that the kernel takes as one transaction.
type batch struct {
	nlmsg.Builder

	table TableID
	// first is the number of the first message after the one that begins the batch.
	first uint32
	// sent are the messages of operations.
	sent []sent
}

// sent says to which operation a message belongs, and where it starts.
type sent struct {
	op    Op
	start int
}

// encodeBatch writes operations as one batch. An unfinished one is refused by the kernel after it has
// tried every operation.
func encodeBatch(buffer []byte, seq uint32, table TableID, ops []Op, generation Generation, finished bool) (*batch, error) {
	b := &batch{Builder: nlmsg.Builder{B: buffer}, table: table, first: seq + 1}
	if err := checkName("table", table.Name); err != nil {
		return nil, err
	}
	b.Begin(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, seq)
	b.genMsg(0, unix.NFNL_SUBSYS_NFTABLES)
	if generation != 0 {
		b.big32(unix.NFNL_BATCH_GENID, uint32(generation))
	}
	b.End()
	for i, o := range ops {
		if err := b.op(o, uint32(i)+1); err != nil {
			return nil, &OpError{table, o, err}
		}
		if len(b.B) > maxBatch {
			return nil, fmt.Errorf("a batch of more than %d MiB: %w", maxBatch>>20, ErrTooLarge)
		}
	}
	// The answer to the last operation says that the kernel has read all of them.
	b.AddFlags(unix.NLM_F_ACK)
	if finished {
		b.Begin(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, b.first+uint32(len(b.sent))) //nolint:gosec // as above
		b.genMsg(0, unix.NFNL_SUBSYS_NFTABLES)
		b.End()
	}
	return b, nil
}

// op writes an operation. number is its place in the batch.
func (b *batch) op(o Op, number uint32) error {
	switch o := o.(type) {
	case AddTable:
		b.begin(o, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
		b.big32(unix.NFTA_TABLE_FLAGS, 0)
	case DeleteTable:
		b.begin(o, unix.NFT_MSG_DELTABLE, 0)
	case AddChain:
		return b.addChain(o)
	case FlushChain:
		return b.named(o, unix.NFT_MSG_DELRULE, unix.NFTA_RULE_CHAIN, "chain", o.Chain)
	case DeleteChain:
		return b.named(o, unix.NFT_MSG_DELCHAIN, unix.NFTA_CHAIN_NAME, "chain", o.Chain)
	case AddRule:
		return b.rule(o, unix.NLM_F_CREATE|unix.NLM_F_APPEND, o.Chain, o.Rule, o.After)
	case InsertRule:
		return b.rule(o, unix.NLM_F_CREATE, o.Chain, o.Rule, o.Before)
	case DeleteRule:
		if o.Handle == 0 {
			return errors.New("a rule without a handle")
		}
		if err := checkName("chain", o.Chain); err != nil {
			return err
		}
		b.begin(o, unix.NFT_MSG_DELRULE, 0)
		b.Text(unix.NFTA_RULE_CHAIN, o.Chain)
		b.big64(unix.NFTA_RULE_HANDLE, o.Handle)
	case AddSet:
		return b.addSet(o, number)
	case DeleteSet:
		return b.named(o, unix.NFT_MSG_DELSET, unix.NFTA_SET_NAME, "set", o.Set)
	case FlushSet:
		return b.named(o, unix.NFT_MSG_DELSETELEM, unix.NFTA_SET_ELEM_LIST_SET, "set", o.Set)
	case AddElements:
		return b.elements(o, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, o.Set, o.Elements, true)
	case DeleteElements:
		return b.elements(o, unix.NFT_MSG_DELSETELEM, 0, o.Set, o.Elements, false)
	default:
		return fmt.Errorf("an operation of type %T", o)
	}
	b.End()
	return nil
}

// begin begins a message with the name of the table, which every message has as its first attribute.
func (b *batch) begin(o Op, kind, flags uint16) {
	b.sent = append(b.sent, sent{o, len(b.B)})
	b.Begin(message(kind), unix.NLM_F_REQUEST|flags, b.first+uint32(len(b.sent))-1) //nolint:gosec // a batch is bounded
	b.genMsg(b.table.Family, 0)
	b.Text(unix.NFTA_TABLE_NAME, b.table.Name)
}

// named writes a message that needs a name only.
func (b *batch) named(o Op, kind, attribute uint16, what, name string) error {
	if err := checkName(what, name); err != nil {
		return err
	}
	b.begin(o, kind, 0)
	b.Text(attribute, name)
	b.End()
	return nil
}

func (b *batch) addChain(o AddChain) error {
	if err := checkName("chain", o.Chain.Name); err != nil {
		return err
	}
	b.begin(o, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	b.Text(unix.NFTA_CHAIN_NAME, o.Chain.Name)
	if base := o.Chain.Base; base != (Base{}) {
		if err := checkName("chain type", string(base.Type)); err != nil {
			return err
		}
		b.Text(unix.NFTA_CHAIN_TYPE, string(base.Type))
		b.big32(unix.NFTA_CHAIN_POLICY, uint32(base.Policy))
		hook := b.nest(unix.NFTA_CHAIN_HOOK)
		b.big32(unix.NFTA_HOOK_HOOKNUM, uint32(base.Hook))
		b.big32(unix.NFTA_HOOK_PRIORITY, uint32(base.Priority)) //nolint:gosec // two's complement
		b.Close(hook)
	}
	b.End()
	return nil
}

func (b *batch) rule(o Op, flags uint16, chain string, r Rule, beside uint64) error {
	if err := checkName("chain", chain); err != nil {
		return err
	}
	if len(r.Exprs) > maxExprs {
		return fmt.Errorf("a rule of %d expressions: the kernel takes %d", len(r.Exprs), maxExprs)
	}
	if len(r.Comment) > maxComment || strings.IndexByte(r.Comment, 0) >= 0 {
		return fmt.Errorf("a comment is up to %d bytes without NUL, not %q", maxComment, r.Comment)
	}
	b.begin(o, unix.NFT_MSG_NEWRULE, flags)
	b.Text(unix.NFTA_RULE_CHAIN, chain)
	list := b.nest(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range r.Exprs {
		if err := b.expr(e); err != nil {
			return fmt.Errorf("%s: %w", e, err)
		}
	}
	b.Close(list)
	if beside != 0 {
		b.big64(unix.NFTA_RULE_POSITION, beside)
	}
	if r.Comment != "" {
		at := b.Open(unix.NFTA_RULE_USERDATA)
		b.Bytes(commentType, byte(len(r.Comment)+1)) //nolint:gosec // at most 128
		b.Bytes([]byte(r.Comment)...)
		b.Bytes(0)
		b.Close(at)
	}
	b.End()
	return nil
}

func (b *batch) addSet(o AddSet, number uint32) error {
	if err := checkName("set", o.Set.Name); err != nil {
		return err
	}
	length := o.Set.Key.length()
	if length == 0 || length > maxValue || o.Set.Unknown {
		return fmt.Errorf("keys of type %s cannot be written", o.Set.Key)
	}
	b.begin(o, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	b.Text(unix.NFTA_SET_NAME, o.Set.Name)
	var flags uint32
	if o.Set.Verdicts {
		flags = flagMap
	}
	b.big32(unix.NFTA_SET_FLAGS, flags)
	b.big32(unix.NFTA_SET_KEY_TYPE, uint32(o.Set.Key))
	b.big32(unix.NFTA_SET_KEY_LEN, uint32(length)) //nolint:gosec // at most 64
	if o.Set.Verdicts {
		b.big32(unix.NFTA_SET_DATA_TYPE, verdictType)
		b.big32(unix.NFTA_SET_DATA_LEN, 0)
	}
	b.big32(unix.NFTA_SET_ID, number)
	b.End()
	return nil
}

// fullList is when another message begins: the length of an attribute has 16 bits.
const fullList = 48 << 10

func (b *batch) elements(o Op, kind, flags uint16, set string, elements []Element, verdicts bool) error {
	if err := checkName("set", set); err != nil {
		return err
	}
	if len(elements) == 0 {
		// The kernel would take a deletion without elements for one of all.
		return errors.New("no elements")
	}
	for len(elements) > 0 {
		b.begin(o, kind, flags)
		b.Text(unix.NFTA_SET_ELEM_LIST_SET, set)
		list := b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for len(elements) > 0 && len(b.B)-list < fullList {
			if err := b.element(elements[0], verdicts); err != nil {
				return fmt.Errorf("element %s: %w", elements[0], err)
			}
			elements = elements[1:]
		}
		b.Close(list)
		b.End()
		if len(b.B) > maxBatch {
			return ErrTooLarge
		}
	}
	return nil
}

func (b *batch) element(e Element, verdict bool) error {
	if e.Unknown {
		return errors.New("cannot be written")
	}
	at := b.nest(unix.NFTA_LIST_ELEM)
	if err := b.value(unix.NFTA_SET_ELEM_KEY, e.Key); err != nil {
		return err
	}
	if verdict && e.Verdict.Code != NoVerdict {
		if err := b.verdict(unix.NFTA_SET_ELEM_DATA, e.Verdict); err != nil {
			return err
		}
	}
	b.Close(at)
	return nil
}

// expr writes an expression as an element of a list.
func (b *batch) expr(e Expr) error {
	element := b.nest(unix.NFTA_LIST_ELEM)
	name, ok := kernelName(e)
	if !ok {
		return errors.New("cannot be written")
	}
	b.Text(unix.NFTA_EXPR_NAME, name)
	data := b.nest(unix.NFTA_EXPR_DATA)
	err := b.exprData(e)
	b.Close(data)
	b.Close(element)
	return err
}

// kernelName is the name of the kernel's expression, false for one that cannot be written.
func kernelName(e Expr) (string, bool) {
	switch e.(type) {
	case MetaLoad, MetaSet:
		return "meta", true
	case Payload:
		return "payload", true
	case CT:
		return "ct", true
	case Cmp:
		return "cmp", true
	case Bitwise:
		return "bitwise", true
	case Lookup, VerdictMap:
		return "lookup", true
	case Immediate, Decide:
		return "immediate", true
	case Counter:
		return "counter", true
	default:
		return "", false
	}
}

func (b *batch) exprData(e Expr) error {
	switch e := e.(type) {
	case MetaLoad:
		b.big32(unix.NFTA_META_KEY, uint32(e.Key))
		b.big32(unix.NFTA_META_DREG, uint32(e.Dest))
	case MetaSet:
		b.big32(unix.NFTA_META_KEY, uint32(e.Key))
		b.big32(unix.NFTA_META_SREG, uint32(e.Source))
	case Payload:
		b.big32(unix.NFTA_PAYLOAD_DREG, uint32(e.Dest))
		b.big32(unix.NFTA_PAYLOAD_BASE, networkHeader)
		b.big32(unix.NFTA_PAYLOAD_OFFSET, uint32(e.Offset))
		b.big32(unix.NFTA_PAYLOAD_LEN, uint32(e.Length))
	case CT:
		b.big32(unix.NFTA_CT_KEY, uint32(e.Key))
		b.big32(unix.NFTA_CT_DREG, uint32(e.Dest))
		if e.Direction != NoDirection {
			b.Attribute8(unix.NFTA_CT_DIRECTION, uint8(e.Direction-Original))
		}
	case Cmp:
		b.big32(unix.NFTA_CMP_SREG, uint32(e.Source))
		b.big32(unix.NFTA_CMP_OP, uint32(e.Op))
		return b.value(unix.NFTA_CMP_DATA, e.Value)
	case Bitwise:
		if len(e.Mask) != len(e.Xor) {
			return errors.New("mask and xor differ in length")
		}
		b.big32(unix.NFTA_BITWISE_SREG, uint32(e.Source))
		b.big32(unix.NFTA_BITWISE_DREG, uint32(e.Dest))
		b.big32(unix.NFTA_BITWISE_LEN, uint32(len(e.Mask))) //nolint:gosec // value checks it
		return errors.Join(b.value(unix.NFTA_BITWISE_MASK, e.Mask), b.value(unix.NFTA_BITWISE_XOR, e.Xor))
	case Lookup:
		b.Text(unix.NFTA_LOOKUP_SET, e.Set)
		b.big32(unix.NFTA_LOOKUP_SREG, uint32(e.Source))
		if e.Not {
			b.big32(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
		}
		return checkName("set", e.Set)
	case VerdictMap:
		b.Text(unix.NFTA_LOOKUP_SET, e.Set)
		b.big32(unix.NFTA_LOOKUP_SREG, uint32(e.Source))
		b.big32(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
		return checkName("set", e.Set)
	case Immediate:
		b.big32(unix.NFTA_IMMEDIATE_DREG, uint32(e.Dest))
		return b.value(unix.NFTA_IMMEDIATE_DATA, e.Value)
	case Decide:
		b.big32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		return b.verdict(unix.NFTA_IMMEDIATE_DATA, e.Verdict)
	case Counter:
		b.big64(unix.NFTA_COUNTER_BYTES, e.Bytes)
		b.big64(unix.NFTA_COUNTER_PACKETS, e.Packets)
	}
	return nil
}

// value writes a value as an attribute.
func (b *batch) value(kind uint16, v Value) error {
	if v == "" || len(v) > maxValue {
		return fmt.Errorf("a value of %d bytes: it has 1 to %d", len(v), maxValue)
	}
	at := b.nest(kind)
	b.Attribute(unix.NFTA_DATA_VALUE, []byte(v))
	b.Close(at)
	return nil
}

// verdict writes a verdict as an attribute.
func (b *batch) verdict(kind uint16, v Verdict) error {
	var code int32
	switch v.Code {
	case Accept:
		code = wireAccept
	case Drop:
		code = wireDrop
	case Jump:
		code = wireJump
	case Goto:
		code = wireGoto
	case Return:
		code = wireReturn
	case Continue:
		code = wireContinue
	case NoVerdict, UnknownVerdict:
		return errors.New("no verdict that can be written")
	default:
		return fmt.Errorf("verdict %d", v.Code)
	}
	goes := v.Code == Jump || v.Code == Goto
	if goes != (v.Chain != "") {
		return errors.New("jump and goto have a chain, other verdicts have none")
	}
	data := b.nest(kind)
	verdict := b.nest(unix.NFTA_DATA_VERDICT)
	b.big32(unix.NFTA_VERDICT_CODE, uint32(code)) //nolint:gosec // two's complement
	if goes {
		if err := checkName("chain", v.Chain); err != nil {
			return err
		}
		b.Text(unix.NFTA_VERDICT_CHAIN, v.Chain)
	}
	b.Close(verdict)
	b.Close(data)
	return nil
}

// genMsg writes struct nfgenmsg.
func (b *batch) genMsg(f Family, resource uint16) { genMsg(&b.Builder, f, resource) }

func genMsg(m *nlmsg.Builder, f Family, resource uint16) {
	m.Bytes(byte(f), unix.NFNETLINK_V0)
	m.B = binary.BigEndian.AppendUint16(m.B, resource)
}

// big32 writes a number of 32 bits. nf_tables has numbers in the order of the network, but for the
// content of registers.
func (b *batch) big32(kind uint16, v uint32) {
	at := b.Open(kind)
	b.B = binary.BigEndian.AppendUint32(b.B, v)
	b.Close(at)
}

func (b *batch) big64(kind uint16, v uint64) {
	at := b.Open(kind)
	b.B = binary.BigEndian.AppendUint64(b.B, v)
	b.Close(at)
}

func (b *batch) nest(kind uint16) int { return b.Open(kind | unix.NLA_F_NESTED) }

// checkName checks a name as the kernel does, which says EINVAL or ERANGE only.
func checkName(what, name string) error {
	if name == "" || len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("a name of a %s has 1 to %d bytes without NUL: %q is none", what, maxName, name)
	}
	return nil
}
