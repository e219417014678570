/// The protocol's version and the largest sizes that either side accepts: checked before memory is taken.

public enum WireLimits {
    /// The version in every frame. It changes with any change to a frame or a message.
    public static let protocolVersion: UInt8 = 3

    /// Magic, version, kind, reserved, body length, checksum.
    public static let headerBytes = 16

    /// Bytes of a blob or contribution in one chunk; only the last may be shorter. About two seconds at 1 Mbit/s, so
    /// that a lost connection costs little and a heartbeat never waits long.
    public static let chunkBytes = 262_144

    /// What a chunk message holds beside the chunk: session, digest, index, count and so on (at most 85 bytes now).
    public static let chunkSlack = 1024

    /// The body of an `uploadChunk` request or a `chunk` reply.
    public static let chunkBodyBytes = chunkBytes + chunkSlack

    /// The body of every other message: the plan's JSON and the lists of blobs have to fit.
    public static let controlBodyBytes = 1 << 20

    /// The largest frame of any kind: what sockets are told to accept.
    public static let frameBytes = headerBytes + max(chunkBodyBytes, controlBodyBytes)

    /// Chunks of one blob or contribution: 16 GiB in all. The coordinator's core refuses far less, by the plan.
    public static let chunkCount = 65_536

    /// Blobs named by one task: FLoRA names one segment a round that a client lacks.
    public static let blobCount = 16_384

    /// Labels of a classifier's evaluation.
    public static let labelCount = 65_536

    /// UTF-8 bytes of a client's name.
    public static let nameBytes = 64

    /// UTF-8 bytes of other strings that a program reads: versions, run identifiers, kernel paths.
    public static let wordBytes = 128

    /// UTF-8 bytes of a sentence for a person; longer ones are cut when encoded.
    public static let sentenceBytes = 2048

    /// Bytes of the secret by which the coordinator knows a client again.
    public static let secretBytes = 32

    /// What is wrong with a client's name, or nil: 1 to 64 bytes of letters, digits and `-`, `_`, `.`, not starting
    /// with `.` or `-`, because names become file names and command-line arguments.
    public static func problem(inClientName name: String) -> String? {
        guard !name.isEmpty else { return "the client's name is empty" }
        guard name.utf8.count <= nameBytes else {
            return "the client's name has \(name.utf8.count) bytes; the most is \(nameBytes)"
        }
        func isLetterOrDigit(_ byte: UInt8) -> Bool {
            (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
        }
        let punctuation = Array("-_.".utf8)
        guard name.utf8.allSatisfy({ isLetterOrDigit($0) || punctuation.contains($0) }) else {
            return "the client's name may hold letters a-z, digits, '-', '_' and '.' only"
        }
        guard let first = name.utf8.first, isLetterOrDigit(first) || first == UInt8(ascii: "_") else {
            return "the client's name must start with a letter, a digit or '_'"
        }
        return nil
    }
}
