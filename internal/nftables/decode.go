package nftables

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
)

// Decoders take what follows struct nlmsghdr. They believe nothing: what is missing or too short is
// read as zero, and what this package does not know as Unknown. They ignore attributes that it does
// not know: a newer kernel may tell more of an object than it was told.

// split cuts struct nfgenmsg off.
func split(payload []byte) (f Family, attributes nlmsg.Attributes, ok bool) {
	if len(payload) < sizeofGenMsg {
		return 0, attributes, false
	}
	return Family(payload[0]), nlmsg.Attributes{Rest: payload[sizeofGenMsg:]}, true
}

// tableOf reads the table that a message is about. The kernel writes its name as the first attribute
// of every message but those of generations and traces, and NFTA_*_TABLE is 1 in all of them.
func tableOf(payload []byte) (f Family, name []byte) {
	f, a, ok := split(payload)
	if !ok || !a.Next() || a.Kind != unix.NFTA_TABLE_NAME {
		return f, nil
	}
	return f, text(a.Value)
}

// is reports whether a message is about the table.
func (id TableID) is(payload []byte) bool {
	f, name := tableOf(payload)
	return f == id.Family && string(name) == id.Name
}

// text is a string without its NUL.
func text(b []byte) []byte {
	for i, c := range b {
		if c == 0 {
			return b[:i]
		}
	}
	return b
}

func big32(a *nlmsg.Attributes) uint32 {
	if len(a.Value) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a.Value)
}

func big64(a *nlmsg.Attributes) uint64 {
	if len(a.Value) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a.Value)
}

// decodeGeneration reads NFT_MSG_NEWGEN. pid and program are there in notifications only.
func decodeGeneration(payload []byte) (g Generation, pid uint32, program string) {
	_, a, _ := split(payload)
	for a.Next() {
		switch a.Kind {
		case unix.NFTA_GEN_ID:
			g = Generation(big32(&a))
		case unix.NFTA_GEN_PROC_PID:
			pid = big32(&a)
		case unix.NFTA_GEN_PROC_NAME:
			program = string(text(a.Value[:min(len(a.Value), maxProgram)]))
		}
	}
	return g, pid, program
}

// maxProgram is TASK_COMM_LEN.
const maxProgram = 16

// decodeTable reads NFT_MSG_NEWTABLE. Others counts everything in the table until chains and sets are
// known.
func decodeTable(payload []byte) (t Table) {
	_, a, _ := split(payload)
	for a.Next() {
		switch a.Kind {
		case unix.NFTA_TABLE_FLAGS:
			t.Dormant = big32(&a)&unix.NFT_TABLE_F_DORMANT != 0
		case unix.NFTA_TABLE_USE:
			t.Others = int(big32(&a))
		case tableOwner:
			t.Owner = big32(&a)
		}
	}
	return t
}

// decodeChain reads NFT_MSG_NEWCHAIN. Newer kernels tell only name and handle in NFT_MSG_DELCHAIN.
func decodeChain(payload []byte) (c Chain) {
	_, a, _ := split(payload)
	for a.Next() {
		switch a.Kind {
		case unix.NFTA_CHAIN_NAME:
			c.Name = a.Text()
		case unix.NFTA_CHAIN_HANDLE:
			c.Handle = big64(&a)
		case unix.NFTA_CHAIN_TYPE:
			c.Base.Type = ChainType(a.Text())
		case unix.NFTA_CHAIN_POLICY:
			c.Base.Policy = Policy(big32(&a))
		case unix.NFTA_CHAIN_HOOK:
			for h := (nlmsg.Attributes{Rest: a.Value}); h.Next(); {
				switch h.Kind {
				case unix.NFTA_HOOK_HOOKNUM:
					c.Base.Hook = Hook(big32(&h))
				case unix.NFTA_HOOK_PRIORITY:
					c.Base.Priority = int32(big32(&h)) //nolint:gosec // two's complement
				}
			}
		}
	}
	return c
}

// decodeSet reads NFT_MSG_NEWSET.
func decodeSet(payload []byte) (s Set) {
	var flags, keyLength, dataType uint32
	_, a, _ := split(payload)
	for a.Next() {
		switch a.Kind {
		case unix.NFTA_SET_NAME:
			s.Name = a.Text()
		case setHandle:
			s.Handle = big64(&a)
		case unix.NFTA_SET_FLAGS:
			flags = big32(&a)
		case unix.NFTA_SET_KEY_TYPE:
			s.Key = KeyType(big32(&a))
		case unix.NFTA_SET_KEY_LEN:
			keyLength = big32(&a)
		case unix.NFTA_SET_DATA_TYPE:
			dataType = big32(&a)
		case unix.NFTA_SET_TIMEOUT, setExpr, setExprs:
			s.Unknown = true
		case unix.NFTA_SET_DESC:
			for d := (nlmsg.Attributes{Rest: a.Value}); d.Next(); {
				// A limit of elements.
				s.Unknown = s.Unknown || d.Kind == unix.NFTA_SET_DESC_SIZE && big32(&d) != 0
			}
		}
	}
	s.Verdicts = flags&flagMap != 0 && dataType == verdictType
	length := s.Key.length()
	if flags&^(flagMap|flagConcat) != 0 || flags&flagMap != 0 && !s.Verdicts || length == 0 || length > maxValue || int(keyLength) != length {
		s.Unknown = true
	}
	return s
}

// decodeElements reads NFT_MSG_NEWSETELEM: the set, and its elements one by one.
func decodeElements(payload []byte, each func(Element)) (set string) {
	_, a, _ := split(payload)
	for a.Next() {
		switch a.Kind {
		case unix.NFTA_SET_ELEM_LIST_SET:
			set = a.Text()
		case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
			for e := (nlmsg.Attributes{Rest: a.Value}); each != nil && e.Next(); {
				if e.Kind == unix.NFTA_LIST_ELEM {
					each(decodeElement(e.Value))
				}
			}
		}
	}
	return set
}

func decodeElement(b []byte) (e Element) {
	for a := (nlmsg.Attributes{Rest: b}); a.Next(); {
		switch a.Kind {
		case unix.NFTA_SET_ELEM_KEY:
			value, _, ok := decodeData(a.Value)
			e.Key = value
			e.Unknown = e.Unknown || !ok
		case unix.NFTA_SET_ELEM_DATA:
			_, verdict, ok := decodeData(a.Value)
			e.Verdict = verdict
			e.Unknown = e.Unknown || !ok || verdict.Code == NoVerdict
		case unix.NFTA_SET_ELEM_FLAGS:
			e.Unknown = e.Unknown || big32(&a) != 0
		case unix.NFTA_SET_ELEM_TIMEOUT, unix.NFTA_SET_ELEM_EXPIRATION, unix.NFTA_SET_ELEM_EXPR, unix.NFTA_SET_ELEM_OBJREF, elemKeyEnd, elemExprs:
			e.Unknown = true
		}
	}
	e.Unknown = e.Unknown || e.Key == ""
	return e
}

// decodeRule reads NFT_MSG_NEWRULE.
func decodeRule(payload []byte) (chain string, r Rule) {
	return decodeRuleBy(payload, (*expression).decode)
}

// decodeRuleBy reads the expressions of a rule by a function.
func decodeRuleBy(payload []byte, decode func(*expression) (Expr, bool)) (chain string, r Rule) {
	_, a, _ := split(payload)
	for a.Next() {
		switch a.Kind {
		case unix.NFTA_RULE_CHAIN:
			chain = a.Text()
		case unix.NFTA_RULE_HANDLE:
			r.Handle = big64(&a)
		case unix.NFTA_RULE_USERDATA:
			r.Comment = decodeComment(a.Value)
		case unix.NFTA_RULE_EXPRESSIONS:
			for e := (nlmsg.Attributes{Rest: a.Value}); e.Next(); {
				if e.Kind == unix.NFTA_LIST_ELEM {
					r.Exprs = append(r.Exprs, decodeExpr(e.Value, decode))
				}
			}
		}
	}
	return chain, r
}

// decodeComment finds the comment in the user data of a rule.
func decodeComment(b []byte) string {
	const head = 2
	for len(b) >= head {
		kind, n := b[0], int(b[1])
		if head+n > len(b) {
			break
		}
		if kind == commentType {
			return string(text(b[head : head+n]))
		}
		b = b[head+n:]
	}
	return ""
}

// An expression is the attributes of one that is read, by their number; those of one expression are
// few and small.
type expression struct {
	name  string
	attrs [16][]byte
}

func (x *expression) has(kind uint16) bool { return x.attrs[kind] != nil }

func (x *expression) number(kind uint16) uint32 {
	return big32(&nlmsg.Attributes{Value: x.attrs[kind]})
}

func (x *expression) wide(kind uint16) uint64 { return big64(&nlmsg.Attributes{Value: x.attrs[kind]}) }

func (x *expression) text(kind uint16) string { return string(text(x.attrs[kind])) }

// register is a register that can hold values, false for another number.
func (x *expression) register(kind uint16) (Register, bool) {
	n := x.number(kind)
	return Register(n), n >= 1 && n <= 4 || n >= firstWord && n < firstWord+words //nolint:gosec // in this range
}

func (x *expression) value(kind uint16) (Value, bool) {
	value, verdict, ok := decodeData(x.attrs[kind])
	return value, ok && verdict.Code == NoVerdict
}

// attributesOf reads the name and the attributes of an expression.
func attributesOf(b []byte) (x expression) {
	for a := (nlmsg.Attributes{Rest: b}); a.Next(); {
		switch a.Kind {
		case unix.NFTA_EXPR_NAME:
			x.name = a.Text()
		case unix.NFTA_EXPR_DATA:
			for d := (nlmsg.Attributes{Rest: a.Value}); d.Next(); {
				if int(d.Kind) < len(x.attrs) {
					x.attrs[d.Kind] = d.Value
				}
			}
		}
	}
	return x
}

// decodeExpr reads one expression.
func decodeExpr(b []byte, decode func(*expression) (Expr, bool)) Expr {
	x := attributesOf(b)
	if e, ok := decode(&x); ok {
		return e
	}
	return Unknown{x.name}
}

func (x *expression) decode() (Expr, bool) {
	switch x.name {
	case "meta":
		return decodeMeta(x)
	case "payload":
		return decodePayload(x)
	case "ct":
		return decodeCT(x)
	case "cmp":
		return decodeCmp(x)
	case "bitwise":
		return decodeBitwise(x)
	case "lookup":
		return decodeLookup(x)
	case "immediate":
		return decodeImmediate(x)
	case "counter":
		return decodeCounter(x)
	default:
		return nil, false
	}
}

func decodeMeta(x *expression) (Expr, bool) {
	key := MetaKey(x.number(unix.NFTA_META_KEY))
	if !x.has(unix.NFTA_META_KEY) || x.has(unix.NFTA_META_DREG) == x.has(unix.NFTA_META_SREG) {
		return nil, false
	}
	if x.has(unix.NFTA_META_SREG) {
		source, ok := x.register(unix.NFTA_META_SREG)
		return MetaSet{key, source}, ok
	}
	dest, ok := x.register(unix.NFTA_META_DREG)
	return MetaLoad{key, dest}, ok
}

func decodePayload(x *expression) (Expr, bool) {
	dest, ok := x.register(unix.NFTA_PAYLOAD_DREG)
	offset, length := x.number(unix.NFTA_PAYLOAD_OFFSET), x.number(unix.NFTA_PAYLOAD_LEN)
	ok = ok && !x.has(unix.NFTA_PAYLOAD_SREG) && x.number(unix.NFTA_PAYLOAD_BASE) == networkHeader &&
		offset <= 0xff && length > 0 && length <= maxValue
	return Payload{uint8(offset), uint8(length), dest}, ok //nolint:gosec // checked before
}

func decodeCT(x *expression) (Expr, bool) {
	dest, ok := x.register(unix.NFTA_CT_DREG)
	e := CT{Key: CTKey(x.number(unix.NFTA_CT_KEY)), Dest: dest}
	if direction := x.attrs[unix.NFTA_CT_DIRECTION]; direction != nil {
		if len(direction) != 1 || direction[0] > 1 {
			return nil, false
		}
		e.Direction = Original + Direction(direction[0])
	}
	return e, ok && x.has(unix.NFTA_CT_KEY) && !x.has(unix.NFTA_CT_SREG)
}

func decodeCmp(x *expression) (Expr, bool) {
	source, ok := x.register(unix.NFTA_CMP_SREG)
	value, simple := x.value(unix.NFTA_CMP_DATA)
	op := x.number(unix.NFTA_CMP_OP)
	return Cmp{CmpOp(op), source, value}, ok && simple && x.has(unix.NFTA_CMP_OP) && op <= uint32(NotEqual) //nolint:gosec // checked
}

func decodeBitwise(x *expression) (Expr, bool) {
	source, ok1 := x.register(unix.NFTA_BITWISE_SREG)
	dest, ok2 := x.register(unix.NFTA_BITWISE_DREG)
	mask, ok3 := x.value(unix.NFTA_BITWISE_MASK)
	xor, ok4 := x.value(unix.NFTA_BITWISE_XOR)
	ok := ok1 && ok2 && ok3 && ok4 && x.number(bitwiseOp) == 0 && !x.has(bitwiseData) &&
		len(mask) == len(xor) && int(x.number(unix.NFTA_BITWISE_LEN)) == len(mask)
	return Bitwise{source, dest, mask, xor}, ok
}

func decodeLookup(x *expression) (Expr, bool) {
	source, ok := x.register(unix.NFTA_LOOKUP_SREG)
	flags, set := x.number(unix.NFTA_LOOKUP_FLAGS), x.text(unix.NFTA_LOOKUP_SET)
	ok = ok && set != "" && flags&^unix.NFT_LOOKUP_F_INV == 0
	if x.has(unix.NFTA_LOOKUP_DREG) {
		return VerdictMap{set, source}, ok && x.number(unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT && flags == 0
	}
	return Lookup{set, source, flags != 0}, ok
}

func decodeImmediate(x *expression) (Expr, bool) {
	value, verdict, ok := decodeData(x.attrs[unix.NFTA_IMMEDIATE_DATA])
	if !ok || !x.has(unix.NFTA_IMMEDIATE_DREG) {
		return nil, false
	}
	if verdict.Code != NoVerdict {
		return Decide{verdict}, x.number(unix.NFTA_IMMEDIATE_DREG) == unix.NFT_REG_VERDICT
	}
	dest, ok := x.register(unix.NFTA_IMMEDIATE_DREG)
	return Immediate{dest, value}, ok
}

func decodeCounter(x *expression) (Expr, bool) {
	return Counter{Packets: x.wide(unix.NFTA_COUNTER_PACKETS), Bytes: x.wide(unix.NFTA_COUNTER_BYTES)}, true
}

// decodeData reads a value or a verdict, false if it is neither.
func decodeData(b []byte) (Value, Verdict, bool) {
	a := nlmsg.Attributes{Rest: b}
	if !a.Next() {
		return "", Verdict{}, false
	}
	switch a.Kind {
	case unix.NFTA_DATA_VALUE:
		return Value(a.Value), Verdict{}, len(a.Value) > 0 && len(a.Value) <= maxValue
	case unix.NFTA_DATA_VERDICT:
		return "", decodeVerdict(a.Value), true
	default:
		return "", Verdict{}, false
	}
}

func decodeVerdict(b []byte) (v Verdict) {
	v.Code = UnknownVerdict
	for a := (nlmsg.Attributes{Rest: b}); a.Next(); {
		switch a.Kind {
		case unix.NFTA_VERDICT_CODE:
			v.Code = verdictCode(int32(big32(&a))) //nolint:gosec // two's complement
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = a.Text()
		}
	}
	return v
}

func verdictCode(wire int32) VerdictCode {
	switch wire {
	case wireDrop:
		return Drop
	case wireAccept:
		return Accept
	case wireContinue:
		return Continue
	case wireJump:
		return Jump
	case wireGoto:
		return Goto
	case wireReturn:
		return Return
	default:
		return UnknownVerdict
	}
}
