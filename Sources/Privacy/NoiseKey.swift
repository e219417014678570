/// The secret that noise and private sampling come from. Who knows it can take the noise off again.

import Primitives

/// 32 bytes, under which `NoiseStream` and `addGaussianNoise` draw. Never published, never logged: its description shows
/// nothing. Stored durably before anything drawn under it leaves the process, so that a resumed round draws the same.
public struct NoiseKey: Sendable, Equatable {
    public static let byteCount = 32
    public let bytes: [UInt8]

    /// - Parameter bytes: exactly 32
    public init(bytes: [UInt8]) {
        precondition(bytes.count == Self.byteCount, "a noise key has \(Self.byteCount) bytes, got \(bytes.count)")
        self.bytes = bytes
    }

    /// A new key from the system's cryptographic generator.
    public static func random() -> NoiseKey {
        var generator = SystemRandomNumberGenerator()
        let words = (0..<4).map { _ in generator.next() }
        return NoiseKey(bytes: words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } })
    }

    /// A key that everyone who knows the seed can make: for tests and comparisons on one machine only. What is drawn
    /// under it protects nobody.
    ///
    /// - Parameter name: tells the parties of one run apart, such as a client's name
    public static func unsafeSeeded(_ seed: UInt64, name: String) -> NoiseKey {
        var builder = DigestBuilder()
        builder.update(counted: "tributary seeded noise key")
        var writer = ByteWriter()
        writer.write(seed)
        builder.update(writer.bytes)
        builder.update(counted: name)
        return NoiseKey(bytes: builder.finish().bytes)
    }

    /// A key for one purpose: SHA-256 over this key and all parameters, each in a form that no other parameters share.
    ///
    /// - Parameters:
    ///   - purpose: what is drawn, such as "noise" or "batches"; never used for two things, as two draws from one key
    ///     are the same
    ///   - round, attempt: at least 0
    ///   - context: what else the draw belongs to, such as a run's digest
    public func derived(_ purpose: String, round: Int = 0, attempt: Int = 0, context: Digest? = nil) -> NoiseKey {
        var builder = DigestBuilder()
        builder.update(counted: "tributary noise key")
        builder.update(bytes)
        builder.update(counted: purpose)
        var writer = ByteWriter()
        writer.write(UInt64(round))
        writer.write(UInt64(attempt))
        writer.write(UInt64(context == nil ? 0 : 1))
        writer.write(raw: context?.bytes ?? [])
        builder.update(writer.bytes)
        return NoiseKey(bytes: builder.finish().bytes)
    }
}

extension NoiseKey: CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
    public var description: String { "NoiseKey(secret)" }
    public var debugDescription: String { description }
    public var customMirror: Mirror { Mirror(self, children: EmptyCollection<Mirror.Child>()) }
}
