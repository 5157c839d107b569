// Command nothing does nothing: it shows how long any Go program takes to start.
package main

func main() {}
