/// Where a coordinator listens: `tcp://HOST:PORT`, checked before a socket is opened.

import Primitives

public struct TransportAddress: Hashable, Sendable, CustomStringConvertible {
    /// A name or a number; IPv6 without its brackets.
    public let host: String
    public let port: UInt16

    public init(host: String, port: UInt16) {
        self.host = host
        self.port = port
    }

    /// An address to dial.
    ///
    /// - Throws: `Failure(.usage)` that says what is wrong with the text
    public init(dialing text: String) throws(Failure) {
        try self.init(parsing: text)
        guard port > 0 else {
            throw Failure(.usage, "\(text) has port 0: give the port that the coordinator printed when it started")
        }
        guard host != "0.0.0.0", host != "::" else {
            throw Failure(.usage, "\(text) is no address to dial: give the coordinator's host name or number")
        }
    }

    /// An address to listen on: port 0 takes any free port, host `*` every interface.
    ///
    /// - Throws: `Failure(.usage)` that says what is wrong with the text
    public init(listening text: String) throws(Failure) {
        let address = try Self(parsing: text)
        self.init(host: address.host == "*" ? "0.0.0.0" : address.host, port: address.port)
    }

    public var description: String { host.contains(":") ? "tcp://[\(host)]:\(port)" : "tcp://\(host):\(port)" }

    private init(parsing text: String) throws(Failure) {
        func fail(_ problem: String) -> Failure { Failure(.usage, "address \(text): \(problem); write tcp://HOST:PORT") }
        guard let colon = text.firstIndex(of: ":"), text[colon...].hasPrefix("://") else { throw fail("it has no scheme") }
        let scheme = text[..<colon]
        guard scheme == "tcp" else {
            let known = ["tls+tcp", "tls+tcp4", "tls+tcp6", "ws", "wss", "ipc", "inproc", "tcp4", "tcp6"].contains(String(scheme))
            throw fail(known ? "\(scheme) is not supported in this release" : "scheme \(scheme) is unknown")
        }
        let rest = text[text.index(colon, offsetBy: 3)...]
        guard !rest.contains(where: { "/?#@ ".contains($0) || $0.isWhitespace || !$0.isASCII }) else {
            throw fail("after the port nothing may follow, and host names are plain ASCII")
        }
        guard let last = rest.lastIndex(of: ":") else { throw fail("it has no port") }
        var name = rest[..<last]
        if name.hasPrefix("["), name.hasSuffix("]") {
            name = name.dropFirst().dropLast()
            guard name.contains(":") else { throw fail("brackets are for IPv6 numbers") }
        } else if name.contains(where: { "[]:".contains($0) }) {
            throw fail("an IPv6 number stands in brackets")
        }
        guard !name.isEmpty else { throw fail("it has no host") }
        let digits = rest[rest.index(after: last)...]
        guard !digits.isEmpty, digits.allSatisfy(\.isNumber), let port = UInt16(digits) else {
            throw fail("port \"\(digits)\" is not a number from 0 to 65535")
        }
        self.init(host: String(name), port: port)
    }
}
