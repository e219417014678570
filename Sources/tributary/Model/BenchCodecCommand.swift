/// `tributary bench codec`: how fast updates become bytes here and back, and how many.

import Adapters
import ArgumentParser
import LinearAlgebra
import Primitives
import Programs
import UpdateCodec

struct BenchCodecCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "codec",
        abstract: "Measure every codec on random values, on one core: the median of five encodings and decodings.")

    @Option(name: .long, help: "Values of the update.") var values = 4_194_304
    @Option(name: .long, help: "Tensors that they are in.") var tensors = 64
    @OptionGroup var result: OutputOptions

    /// What encoding an update of 4,194,304 values with a sparse codec may take, in milliseconds.
    static let limit = 15.0
    static let codecs: [UpdateCodec] = [
        .float32, .bfloat16, .int8, .topK(0.05), .topK(0.1), .compeft(density: 0.05), .compeft(density: 0.1),
        .compeft(density: 0.2),
        .compeft(density: 0.1, scope: .allTensors), .compeft(density: 0.1, scale: .deviations(1)),
    ]

    struct Measurement {
        let name: String
        let encodeMilliseconds: Double
        let decodeMilliseconds: Double
        let byteCount: Int
    }

    func run() throws {
        try Interrupts.watch {}
        try require((1...1 << 28).contains(values), "values is \(values): at least 1 and at most \(1 << 28) are measured")
        try require((1...values).contains(tensors), "tensors is \(tensors): at least 1 and at most one for each value")
        let layout = AdapterLayout(
            (0..<tensors).map { index in
                AdapterTensor(
                    map: "map.\(index)", role: .core, rows: 1, columns: values * (index + 1) / tensors - values * index / tensors,
                    rank: 1, scale: 1)
            })
        var generator = SeededGenerator(seed: 0, purpose: "bench codec")
        // The sum of four uniform draws is close enough to a normal one.
        let state = AdapterState(
            layout: layout,
            values: (0..<values).map { _ in
                (generator.symmetric(1) + generator.symmetric(1)) + (generator.symmetric(1) + generator.symmetric(1))
            })
        let copy = Self.copyMilliseconds(state.values)
        var line = ProgressLine()
        var rows: [Measurement] = []
        for (index, codec) in Self.codecs.enumerated() {
            line.show(done: index, of: Self.codecs.count, codec.description)
            rows.append(try measure(codec, state))
            guard !Interrupts.isInterrupted else { throw Failure(.interrupted, "the measurement was stopped; nothing was kept") }
        }
        line.finish()
        let share = Self.limit * Double(values) / 4_194_304
        func bits(_ row: Measurement) -> Double { 8 * Double(row.byteCount) / Double(values) }
        func speed(_ milliseconds: Double) -> Double { 4 * Double(values) / milliseconds / 1e6 }
        result.write([
            ("values", .integer(values)), ("tensors", .integer(tensors)), ("memcpy_ms", real(copy)),
            ("memcpy_gb_per_second", real(speed(copy))), ("limit_ms", real(share)), ("kernels", .string(KernelPath.active.name)),
            (
                "codecs",
                .array(
                    rows.map { row in
                        .object([
                            .init("codec", .string(row.name)), .init("encode_ms", real(row.encodeMilliseconds)),
                            .init("decode_ms", real(row.decodeMilliseconds)),
                            .init("encode_gb_per_second", real(speed(row.encodeMilliseconds))),
                            .init("decode_gb_per_second", real(speed(row.decodeMilliseconds))),
                            .init("bits_per_value", real(bits(row))), .init("bytes", .integer(row.byteCount)),
                            .init("encode_share_of_limit", real(row.encodeMilliseconds / share)),
                        ])
                    })
            ),
        ]) {
            var text =
                "\(values) values in \(tensors) tensors, one core, kernels \(KernelPath.active.name); copying them takes \(Readable.decimal(copy, 2)) ms (\(Readable.decimal(speed(copy), 1)) GB/s)\n"
            for row in rows {
                text +=
                    "\(row.name): encode \(Readable.decimal(row.encodeMilliseconds, 2)) ms (\(Readable.decimal(speed(row.encodeMilliseconds), 1)) GB/s, \(Readable.decimal(row.encodeMilliseconds / share, 2)) of the limit of \(Readable.decimal(share, 1)) ms), decode \(Readable.decimal(row.decodeMilliseconds, 2)) ms (\(Readable.decimal(speed(row.decodeMilliseconds), 1)) GB/s), \(Readable.decimal(bits(row), 4)) bits a value\n"
            }
            return text
        }
    }

    private func measure(_ codec: UpdateCodec, _ state: AdapterState) throws -> Measurement {
        let rounding = SeededGenerator(seed: 0, purpose: "rounding")
        var bytes: [UInt8] = []
        let encode = Self.milliseconds { bytes = EncodedState.encode(state, codec: codec, rounding: rounding) }
        var decoded = AdapterState(zeros: AdapterLayout([]))
        let decode = try Self.milliseconds { decoded = try EncodedState.decode(bytes, layout: state.layout, codecs: [codec]) }
        guard decoded.layout == state.layout else {
            throw Failure(.internalError, "\(codec) decoded another layout than it encoded")
        }
        return Measurement(
            name: codec.description, encodeMilliseconds: encode, decodeMilliseconds: decode, byteCount: bytes.count)
    }

    /// Median of five, after one that is not counted.
    private static func milliseconds<E: Error>(_ body: () throws(E) -> Void) throws(E) -> Double {
        let clock = ContinuousClock()
        var times: [Double] = []
        for _ in 0..<6 {
            let began = clock.now
            try body()
            times.append((clock.now - began) / .milliseconds(1))
        }
        return times.dropFirst().sorted()[2]
    }

    /// What it takes to copy the floats into memory of their own, as a decoder has to.
    private static func copyMilliseconds(_ values: [Float]) -> Double {
        var checked: Float = 0
        let time = milliseconds { () throws(Never) in
            let copy = [Float](unsafeUninitializedCapacity: values.count) { target, initialized in
                _ = target.update(fromContentsOf: values)
                initialized = values.count
            }
            checked += copy[copy.count - 1]
        }
        return checked.isNaN ? .nan : time
    }
}
