// Package foreign finds which rules of other programs' tables in the packet filter
// (Docker, ufw, firewalld, an administrator) drop the packets of pods.
//
// [Ruleset.Trace] walks the rules that a packet would meet, as the kernel does, and
// evaluates their expressions for it. What a packet's description leaves open, or an
// expression that is not known here, makes a rule one that may match; a verdict after
// such a rule is not [Drop.Certain]. Nothing is sent, and nothing is changed.
package foreign
