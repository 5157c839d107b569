package move

import "encoding/json"

// Version is that of the protocol.
const Version = 2

// Type is that of a message.
type Type string

// The messages, in their order.
const (
	Offer    Type = "offer"    // source: Version, Token, Dump, Images, Addresses; or Settle
	Answer   Type = "answer"   // target: Missing
	Imported Type = "imported" // target, if it had Missing
	Ahead    Type = "ahead"    // source, before each stream of blocks of the running containers' memory
	Saved    Type = "saved"    // source, before the archives
	Prepared Type = "prepared" // target: Node
	Go       Type = "go"       // source
	Runs     Type = "runs"     // target: ID
	Settled  Type = "settled"  // target, to a Settle: Node; ID of the pod, "" if it is not there and never will be
	Failed   Type = "failed"   // either, at any time instead of another: Reason
)

// Message is one of any type; which fields it has the type says.
type Message struct {
	Type Type
	// Version is [Version], Token the name of this attempt to move the pod.
	Version int    `json:",omitempty"`
	Token   string `json:",omitempty"`
	// Settle asks what has become of an earlier attempt.
	Settle bool `json:",omitempty"`
	// Dump is the content of the pod's pod.dump.
	Dump json.RawMessage `json:",omitempty"`
	// Images are those that the containers have, by ID.
	Images []string `json:",omitempty"`
	// Addresses are those that the pod has, and is to keep.
	Addresses []string `json:",omitempty"`
	// Missing are those of Images that the source is to send.
	Missing []string `json:",omitempty"`
	// Node is who speaks, as the public key of its checkpoints: what a user calls it may be
	// another one tomorrow.
	Node   string `json:",omitempty"`
	ID     string `json:",omitempty"`
	Reason string `json:",omitempty"`
}

// Report is the outcome, for the user.
type Report struct {
	// ID is that of the pod at the target, if it has moved.
	ID string
	// Error is why it has not, or not yet, or is not removed yet here.
	Error string
	// Unsettled means that it is not known whether the pod runs at the target: it is frozen
	// here until that is settled.
	Unsettled bool
	// Ahead is how much of its memory was sent while it ran, in bytes.
	Ahead int64
	// Frozen is how long the pod ran nowhere, in nanoseconds.
	Frozen int64
}
