/// Sizes of memory as people type them.

import ArgumentParser
import Primitives

/// A number of bytes: `1.5GiB`, `600MiB`, `2GB`.
public struct ByteSize: ExpressibleByArgument, Sendable, Equatable {
    public let bytes: Int

    private static let units: [(name: String, bytes: Double)] = [
        ("kib", 0x1p10), ("mib", 0x1p20), ("gib", 0x1p30), ("kb", 1e3), ("mb", 1e6), ("gb", 1e9),
    ]

    /// Nil unless it is a positive number with a unit.
    public init?(argument: String) {
        let text = argument.lowercased().filter { $0 != " " }
        guard let unit = Self.units.first(where: { text.hasSuffix($0.name) }),
            let value = Double(text.dropLast(unit.name.count)), value > 0, value * unit.bytes < 0x1p60
        else { return nil }
        bytes = Int(value * unit.bytes)
    }

    /// The help of `--memory-limit`, in every program.
    public static var memoryLimitHelp: ArgumentHelp {
        ArgumentHelp(
            "The most memory that training may take, such as 1.5GiB: blocks beyond it run twice. Computing a start is not covered.",
            valueName: "size")
    }

    public var defaultValueDescription: String { Readable.bytes(bytes) }
}
