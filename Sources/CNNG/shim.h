// The part of NNG 1.5 that Tributary uses: request/reply sockets over TCP.
#ifndef TRIBUTARY_NNG_SHIM_H
#define TRIBUTARY_NNG_SHIM_H
#define NNG_ELIDE_DEPRECATED
#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <nng/protocol/reqrep0/req.h>
#endif
