/// `tributary bench gemm`: how fast the matrix products run here, kernel by kernel and shape by shape.

import ArgumentParser
import CKernels
import Checkpoints
import LinearAlgebra
import Primitives
import Programs
import Quantization

struct BenchProductsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "gemm",
        abstract: "Measure matrix products with frozen weights, beside OpenBLAS's sgemm and what the registers allow.")

    @Option(name: .long, help: "Tokens, as a list with commas.") var tokens = "256,512,1024"
    @Option(
        name: .long,
        help:
            "Weights as OUTPUTSxINPUTS, a list with commas; without it those of models of 135 million and 1.1 billion parameters."
    )
    var shapes = "576x576,1536x576,576x1536,2048x2048,5632x2048,2048x5632,256x2048"
    @Option(name: .long, help: "Repetitions; the fastest counts.") var repetitions = 3
    @OptionGroup var result: OutputOptions

    private struct Line {
        let kernel: String
        let rows: Int
        let columns: Int
        let tokens: Int
        /// GFLOP/s on one thread and on all.
        let one: Double
        let all: Double
    }

    func run() throws {
        try Interrupts.watch {}
        _ = try KernelPath.current()
        let counts = try numbers("--tokens", tokens.split(separator: ","))
        let sizes = try shapes.split(separator: ",").map { text in
            let pair = try numbers("--shapes", text.split(separator: "x"))
            try require(pair.count == 2, "--shapes is \(shapes): each is OUTPUTSxINPUTS")
            return (rows: pair[0], columns: pair[1])
        }
        try require((1...1000).contains(repetitions), "--repetitions is \(repetitions): from 1 to 1000 are possible")
        var lines: [Line] = []
        var progress = ProgressLine()
        let peaks = [("float32", false), ("bfloat16", true)].map { name, isHalf in
            (
                name: name, one: Self.registerPeak(bfloat16: isHalf, threads: 1) / 1e9,
                all: Self.registerPeak(bfloat16: isHalf, threads: Parallel.threadCount) / 1e9
            )
        }
        var done = 0
        for (rows, columns) in sizes {
            var generator = SeededGenerator(seed: 0, purpose: "bench gemm")
            let values = (0..<rows * columns).map { _ in generator.symmetric(1) }
            let nf4 = QuantizedMatrix(try NF4.encode(values), rows: rows, columns: columns)
            let int8 = QuantizedMatrix(try Int8Codes(values, rows: rows, columns: columns), rows: rows, columns: columns)
            let dense = QuantizedMatrix(values, rows: rows, columns: columns)
            for count in counts {
                progress.show(
                    done: done, of: sizes.count * counts.count, "\(rows) x \(columns), \(count) tokens")
                done += 1
                let widest = max(rows, columns)
                let input = (0..<count * widest).map { _ in generator.symmetric(1) }
                var output = [Float](repeating: 0, count: count * widest)
                let operations = 2 * Double(rows) * Double(columns) * Double(count)
                input.withUnsafeBufferPointer { input in
                    output.withUnsafeMutableBufferPointer { output in
                        nonisolated(unsafe) let (a, c) = (input.baseAddress!, output.baseAddress!)
                        func add(_ kernel: String, _ body: () -> Void) {
                            let (one, all) = measured(operations: operations, body)
                            lines.append(
                                Line(kernel: kernel, rows: rows, columns: columns, tokens: count, one: one, all: all))
                        }
                        if ComputeType.bfloat16.isSupported {
                            let halves = HalfRows()
                            for (name, matrix) in [("nf4", nf4), ("int8", int8), ("f32", dense)] {
                                for transposed in [false, true] {
                                    let k = transposed ? rows : columns
                                    add("\(name) \(transposed ? "input gradient" : "forward"), bfloat16") {
                                        halves.reserve(rows: count, columns: k)
                                        Parallel.forEach(count: (count + 63) / 64) { task in
                                            let range = Parallel.range(task, of: count, size: 64)
                                            halves.round(a + range.lowerBound * k, lead: k, rows: range, columns: k)
                                        }
                                        matrix.multiply(
                                            halves, count: count, transposed: transposed, into: c,
                                            lead: transposed ? columns : rows)
                                    }
                                }
                            }
                        }
                        // OpenBLAS on floats, in the slabs that the float32 route decodes.
                        values.withUnsafeBufferPointer { values in
                            nonisolated(unsafe) let weights = values.baseAddress!
                            add("sgemm forward, float32") {
                                Parallel.forEach(count: (rows + 191) / 192) { task in
                                    let part = Parallel.range(task, of: rows, size: 192)
                                    gemm(
                                        transposeB: true, m: count, n: part.count, k: columns, a, lda: columns,
                                        weights + part.lowerBound * columns, ldb: columns, c + part.lowerBound, ldc: rows)
                                }
                            }
                        }
                    }
                }
                if Interrupts.isInterrupted {
                    throw Failure(.interrupted, "the measurement was stopped; nothing was kept")
                }
            }
        }
        progress.finish()
        result.write([
            ("threads", .integer(Parallel.threadCount)), ("blas_core", .string(BLAS.coreName)),
            ("kernels", .string(KernelPath.active.name)),
            (
                "register_peak_gflops",
                .object(
                    peaks.map {
                        .init($0.name, .object([.init("one_thread", real($0.one)), .init("all_threads", real($0.all))]))
                    })
            ),
            (
                "products",
                .array(
                    lines.map {
                        .object([
                            .init("kernel", .string($0.kernel)), .init("outputs", .integer($0.rows)),
                            .init("inputs", .integer($0.columns)), .init("tokens", .integer($0.tokens)),
                            .init("one_thread_gflops", real($0.one)), .init("all_threads_gflops", real($0.all)),
                        ])
                    })
            ),
        ]) {
            var text =
                "GFLOP/s on one thread and on \(Parallel.threadCount); OpenBLAS core \(BLAS.coreName), kernels \(KernelPath.active.name)\n"
            func row(_ name: String, _ one: Double, _ all: Double) {
                let padded = name + String(repeating: " ", count: max(1, 56 - name.count))
                text += padded + "\(Readable.decimal(one, 1))  \(Readable.decimal(all, 1))\n"
            }
            for peak in peaks { row("registers, \(peak.name)", peak.one, peak.all) }
            for line in lines {
                row("\(line.kernel): \(line.rows) x \(line.columns), \(line.tokens) tokens", line.one, line.all)
            }
            return text
        }
    }

    private func numbers(_ option: String, _ texts: [Substring]) throws(Failure) -> [Int] {
        var values: [Int] = []
        for text in texts {
            guard let value = Int(text), (1...1 << 16).contains(value) else {
                throw Failure(.usage, "\(option) holds \(text): whole numbers from 1 to 65536 are possible")
            }
            values.append(value)
        }
        return values
    }

    /// GFLOP/s on one thread and on all, the best of the repetitions after one that is not counted.
    private func measured(operations: Double, _ body: () -> Void) -> (one: Double, all: Double) {
        func best() -> Double {
            let clock = ContinuousClock()
            body()
            return (0..<repetitions).reduce(0.0) { best, _ in
                let began = clock.now
                body()
                return max(best, operations / ((clock.now - began) / .seconds(1)) / 1e9)
            }
        }
        return (Parallel.limited(toThreads: 1) { best() }, best())
    }

    /// Floating-point operations a second of multiply-adds alone, without a load; 0 if the kernel path has none.
    static func registerPeak(bfloat16: Bool, threads: Int) -> Double {
        let path = KernelPath.active.rawValue
        let rounds = 500_000
        let clock = ContinuousClock()
        return (0..<5).reduce(0.0) { best, _ in
            var operations = 0.0
            let began = clock.now
            withUnsafeMutablePointer(to: &operations) { operations in
                nonisolated(unsafe) let operations = operations
                Parallel.forEach(count: threads) { thread in
                    let done = tributary_peak_loop(path, bfloat16 ? 1 : 0, rounds)
                    if thread == 0 { operations.pointee = done }
                }
            }
            return max(best, Double(threads) * operations / ((clock.now - began) / .seconds(1)))
        }
    }
}
