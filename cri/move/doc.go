// Package move is what two nodes say to each other when a pod moves from one to the other.
//
//	source                                          target
//	  offer: configuration, images             ──▶    is it possible here?
//	                                           ◀──  answer: the images that it lacks
//	  those images                             ──▶    import them
//	                                           ◀──  imported
//	  blocks of their memory, while they run   ──▶    keep them
//	  those that have changed, …               ──▶
//	  freeze and save the containers
//	  their archives, without those blocks     ──▶    make the pod, its containers CREATED
//	                                           ◀──  prepared
//	  record that the pod is handed over
//	  go                                       ──▶    restore; record, before their first
//	                                                  instruction, that the pod is here
//	                                           ◀──  runs
//	  end the frozen processes, remove the pod
//
// The pod is at the source until that has recorded that it is handed over, and at the target
// once that has recorded that it is here. In between, whoever is killed and wherever the
// connection breaks, it runs at neither: the source, which keeps it frozen, asks again with
// settle. The target ends what is left of the first attempt, and says whether the pod is
// here, or was; what it has said stays true. Only the node that was asked first is believed.
// So at no time do both run, and one does in the end.
//
// The connection is a stream of bytes, between programs of root's on both nodes, such as that
// of ssh. Frames in it are messages in JSON, and data that belongs to the message before it.
// A [Conn] bounds both.
package move
