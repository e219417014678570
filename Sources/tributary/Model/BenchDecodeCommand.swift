/// `tributary bench decode`: products of one token with frozen weights, beside what reading them takes; and a model's steps.

import Adapters
import ArgumentParser
import CKernels
import Checkpoints
import LinearAlgebra
import Model
import Primitives
import Programs
import Quantization

struct BenchDecodeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "decode",
        abstract: "Measure what writing one token after another takes: products of a few tokens, and with --model whole steps.",
        discussion:
            "A product can be no faster than memory gives the weights and the registers decode them; the smaller of the two is its limit."
    )

    @Option(name: .long, help: ArgumentHelp("Also measure steps of this Hugging Face model.", valueName: "dir"))
    var model: String?
    @Option(name: .long, help: "Form of the model's linear maps: stored, none (float32), int8 or nf4.") var quantize = "stored"
    @Option(name: .long, help: "Rank of a LoRA adapter on all of the model's linear maps; 0 is none.") var rank = 0
    @Option(name: .long, help: "Tokens before the steps.") var prompt = 128
    @Option(name: .long, help: "Steps that are measured.") var steps = 64
    @Option(name: .long, help: "Tokens of a product, 1 to 7.") var tokens = 1
    @Option(name: .long, help: "Weights of a product as OUTPUTSxINPUTS.") var shape = "2048x2048"
    @Option(name: .long, help: "Megabytes that are read, more than the caches hold.") var megabytes = 160
    @Option(name: .long, help: "Repetitions; the fastest counts.") var repetitions = 5
    @OptionGroup var result: OutputOptions

    /// A rate on one thread and on all.
    private struct Rate {
        let one: Double
        let all: Double

        var json: JSONValue { .object([.init("one_thread", real(one)), .init("all_threads", real(all))]) }
        var text: String { one.isNaN ? "-" : "\(Readable.decimal(one, 1))  \(Readable.decimal(all, 1))" }
    }

    private struct Line {
        let form: String
        let bytesPerWeight: Double
        /// 10^9 weights a second: decoded within the cache, multiplied within it, and multiplied as they come from memory.
        let decoded: Rate
        let cached: Rate
        let streamed: Rate
        /// Of the smaller of reading and decoding.
        let share: Rate
    }

    private struct Steps {
        let tokensPerSecond: Double
        let bytes: Int
        let readShare: Double
    }

    func run() throws {
        try Interrupts.watch {}
        let path = try KernelPath.current()
        let sides = shape.split(separator: "x").compactMap { Int($0) }
        try require(
            sides.count == 2 && sides.allSatisfy { (1...1 << 16).contains($0) },
            "--shape is \(shape): it is OUTPUTSxINPUTS, each from 1 to 65536")
        for (name, value, range) in [
            ("rank", rank, 0...1024), ("prompt", prompt, 1...1 << 20), ("steps", steps, 1...1 << 20),
            ("tokens", tokens, 1...FewTokens.limit - 1), ("megabytes", megabytes, 1...1 << 14),
            ("repetitions", repetitions, 1...1000),
        ] {
            try require(range.contains(value), "--\(name) is \(value): it is from \(range.lowerBound) to \(range.upperBound)")
        }
        let reading = measuredReading(path)
        let lines = try measuredProducts(path, rows: sides[0], columns: sides[1], reading: reading)
        let steps = try model.map { try measuredSteps($0, reading: reading) }
        var members: [(String, JSONValue)] = [
            ("threads", .integer(Parallel.threadCount)), ("kernels", .string(path.name)), ("shape", .string(shape)),
            ("tokens", .integer(tokens)), ("read_gb_per_second", reading.json),
            (
                "products",
                .array(
                    lines.map {
                        .object([
                            .init("weights", .string($0.form)), .init("bytes_per_weight", real($0.bytesPerWeight)),
                            .init("decode_g_per_second", $0.decoded.json), .init("cached_g_per_second", $0.cached.json),
                            .init("streamed_g_per_second", $0.streamed.json), .init("share_of_limit", $0.share.json),
                        ])
                    })
            ),
        ]
        if let steps {
            members += [
                ("tokens_per_second", real(steps.tokensPerSecond)), ("bytes_per_token", .integer(steps.bytes)),
                ("share_of_reading", real(steps.readShare)),
            ]
        }
        result.write(members) { text(path, reading, lines, steps) }
    }

    private func text(_ path: KernelPath, _ reading: Rate, _ lines: [Line], _ steps: Steps?) -> String {
        func padded(_ text: String, _ width: Int) -> String { text + String(repeating: " ", count: max(1, width - text.count)) }
        var text =
            "on one thread and on \(Parallel.threadCount); kernels \(path.name)\nreading memory: \(reading.text) GB/s\n\n"
        let heads = [
            "weights", "bytes", "decoded in cache", "multiplied in cache", "multiplied from memory", "GB/s", "share of limit",
        ]
        let widths = [11, 8, 18, 21, 24, 14, 14]
        text += zip(heads, widths).map(padded).joined() + "\n"
        for line in lines {
            let cells = [
                line.form, Readable.decimal(line.bytesPerWeight, 3), line.decoded.text, line.cached.text,
                line.streamed.text,
                Rate(one: line.streamed.one * line.bytesPerWeight, all: line.streamed.all * line.bytesPerWeight).text,
                "\(Readable.decimal(100 * line.share.one, 0)) %  \(Readable.decimal(100 * line.share.all, 0)) %",
            ]
            text += zip(cells, widths).map(padded).joined() + "\n"
        }
        text +=
            "\n10^9 weights a second; products of \(shape) with \(tokens) token\(tokens == 1 ? "" : "s"); the limit is the smaller of reading and decoding\n"
        guard let steps else { return text }
        return text
            + "\(Readable.decimal(steps.tokensPerSecond, 1)) tokens/s with \(quantize) weights: \(Readable.bytes(steps.bytes)) a token, \(Readable.decimal(100 * steps.readShare, 0)) % of what reading them allows\n"
    }

    /// `amount` over the seconds of the fastest of the repetitions, on one thread and on all.
    private func measured(_ amount: Double, _ body: () -> Void) -> Rate {
        let clock = ContinuousClock()
        func best() -> Double {
            (0..<repetitions).reduce(0.0) { best, _ in
                let began = clock.now
                body()
                return max(best, amount / ((clock.now - began) / .seconds(1)))
            }
        }
        body()
        return Rate(one: Parallel.limited(toThreads: 1) { best() }, all: best())
    }

    /// GB/s of reading alone, in parts as tasks read weights.
    private func measuredReading(_ path: KernelPath) -> Rate {
        let count = megabytes * 1_000_000 / 4 / 64 * 64
        let memory = FloatBuffer(capacity: count)
        memory.pointer.update(repeating: 1, count: count)
        let part = 1 << 14
        return measured(Double(4 * count) / 1e9) {
            Parallel.forEach(count: (count + part - 1) / part) { task in
                let range = Parallel.range(task, of: count, size: part)
                // The sum is used, so that reading is not left out.
                if tributary_read_loop(path.rawValue, memory.pointer + range.lowerBound, range.count) < 0 {
                    memory.pointer[range.lowerBound] = 1
                }
            }
        }
    }

    private func measuredProducts(_ path: KernelPath, rows: Int, columns: Int, reading: Rate) throws -> [Line] {
        var generator = SeededGenerator(seed: 0, purpose: "bench decode")
        let values = (0..<rows * columns).map { _ in generator.symmetric(1) }
        let x = FloatBuffer(capacity: tokens * columns)
        for index in 0..<tokens * columns { x.pointer[index] = generator.symmetric(1) }
        let y = FloatBuffer(capacity: tokens * rows)
        // Within the cache: the tasks of one thread, again and again.
        let rounds = 64
        return try ["nf4", "nf4 plain", "int8", "bf16", "f16", "f32"].map { name in
            let form = try BenchForm.make([name], values, rows: rows, columns: columns, bytes: megabytes * 1_000_000)[0]
            if Interrupts.isInterrupted { throw Failure(.interrupted, "the measurement was stopped; nothing was kept") }
            let few = FewTokens(x.pointer, count: tokens, columns: columns, for: form.matrices)
            let matrix = form.matrices[0]
            let part = min(rows, matrix.rowsPerFewTask)
            let threads = Parallel.threadCount
            /// The same few rows again and again on each thread: 10^9 weights a second.
            func cached(_ body: (Range<Int>) -> Void) -> Rate {
                measured(Double(threads * rounds * part * columns) / 1e9) {
                    Parallel.forEach(count: threads) { _ in for _ in 0..<rounds { body(0..<part) } }
                }
            }
            // Floats are not decoded: only reading limits them.
            let isFloat = name == "f32"
            let decoded =
                isFloat
                ? Rate(one: .nan, all: .nan) : cached { rows in matrix.withTile(rows: rows, columns: 0..<columns) { _, _ in } }
            let multiplied = cached { rows in
                matrix.multiply(few, rows: rows, into: Scratch.first.floats(tokens * part), lead: part)
            }
            let streamed = measured(Double(form.matrices.count * rows * columns) / 1e9) {
                for matrix in form.matrices { matrix.multiply(few, into: y.pointer, lead: rows) }
            }
            func share(_ reached: Double, _ read: Double, _ decoded: Double) -> Double {
                reached / min(read / form.bytesPerWeight, isFloat ? .infinity : decoded)
            }
            return Line(
                form: name, bytesPerWeight: form.bytesPerWeight, decoded: decoded, cached: multiplied, streamed: streamed,
                share: Rate(
                    one: share(streamed.one, reading.one, decoded.one), all: share(streamed.all, reading.all, decoded.all)))
        }
    }

    private func measuredSteps(_ folder: String, reading: Rate) throws -> Steps {
        let checkpoint = try CheckpointFolder(path: folder)
        let configuration = checkpoint.configuration
        let language = try LanguageModel(
            checkpoint: checkpoint, quantization: try choice("--quantize", quantize, WeightForm.self))
        try require(
            prompt + steps <= configuration.maximumPositions,
            "--prompt and --steps are \(prompt) and \(steps), but the model has only \(configuration.maximumPositions) positions: use at most that together"
        )
        var generator = SeededGenerator(seed: 0, purpose: "bench decode")
        var weights = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))
        if rank > 0 {
            weights = try AdapterSpecification(
                method: .lora, maps: configuration.linearMaps, rank: rank, alpha: 2 * Double(rank), rankStabilized: false
            ).initialWeights(&generator)
        }
        let decoder = try AdaptedModel(model: language, weights: weights).makeDecoder()
        func token() -> Int32 { Int32(generator.integer(below: configuration.vocabularySize)) }
        _ = try decoder.prefill((0..<prompt).map { _ in token() })
        var times: [Double] = []
        let clock = ContinuousClock()
        for _ in 0..<steps {
            let next = token()
            let began = clock.now
            _ = try decoder.step(next)
            times.append((clock.now - began) / .seconds(1))
            if Interrupts.isInterrupted { throw Failure(.interrupted, "the measurement was stopped; nothing was kept") }
        }
        // Linear maps, head and adapter; of an embedding that is not the head one row is read, which does not count.
        let embedding = configuration.tieWordEmbeddings ? 0 : language.embeddingByteCount
        let bytes = language.byteCount - embedding + 4 * weights.trained.values.count
        let step = times.sorted()[steps / 2]
        return Steps(
            tokensPerSecond: 1 / step, bytes: bytes, readShare: Double(bytes) / 1e9 / reading.all / step)
    }
}
