/// What went wrong in one sentence, where, and what to do next: the only error that reaches a person.

/// The exit codes of every Tributary program, after BSD's `sysexits.h`; `docs/exit-codes.md` lists them.
public enum ExitStatus: Int32, Sendable, CaseIterable {
    /// The command line or a combination of options cannot work.
    case usage = 64
    /// A file's content is wrong: a broken checkpoint, a line that is not JSON, an empty data set.
    case badData = 65
    /// A file or folder that was named does not exist or cannot be read.
    case missingInput = 66
    /// The coordinator cannot be reached, or a port is in use.
    case unavailable = 69
    /// A defect in Tributary itself.
    case internalError = 70
    /// An output cannot be created.
    case cannotCreate = 73
    /// Reading or writing failed, most often a full disk.
    case ioError = 74
    /// The two sides speak different protocol versions, or a reply makes no sense.
    case protocolError = 76
    /// The other side refused: wrong base model, name taken, forgotten client.
    case refused = 77
    /// A configuration file or key is wrong.
    case badConfiguration = 78
    /// Stopped by an interrupt; what was kept is said, and how to go on from it.
    case interrupted = 130
}

/// An error for a person: one sentence that says what is wrong, where, and what to do next.
public struct Failure: Error, Equatable, Sendable, CustomStringConvertible {
    public let status: ExitStatus
    public let message: String

    public init(_ status: ExitStatus, _ message: String) {
        self.status = status
        self.message = message
    }

    public var description: String { message }
}
