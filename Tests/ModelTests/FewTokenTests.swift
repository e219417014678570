/// Products of a few tokens: from every form, on every path, and whatever is computed beside them.

import Adapters
import CKernels
import LinearAlgebra
import Model
import Primitives
import Quantization
import TestSupport
import Testing

private func random(_ count: Int, _ purpose: String) -> [Float] {
    var generator = SeededGenerator(seed: 4, purpose: purpose)
    return (0..<count).map { _ in generator.symmetric(1) }
}

@Suite struct FewTokenTests {
    /// y `[tokens, rows.count]` of some rows.
    private func product(
        _ matrix: QuantizedMatrix, _ x: [Float], rows: Range<Int>, path: KernelPath = .active
    ) -> [Float] {
        let tokens = x.count / matrix.columns
        var y = [Float](repeating: .nan, count: tokens * rows.count)
        x.withUnsafeBufferPointer { x in
            let few = FewTokens(x.baseAddress!, count: tokens, columns: matrix.columns, for: [matrix])
            y.withUnsafeMutableBufferPointer {
                matrix.multiply(few, rows: rows, into: $0.baseAddress!, lead: rows.count, path: path)
            }
        }
        return y
    }

    /// Rows of 37, 100 and 200 values hold no whole runs of 32 codes, rows of 96 and 352 no whole blocks of 64.
    @Test(arguments: [(5, 1, 1), (7, 64, 2), (3, 200, 3), (6, 100, 7), (11, 37, 4), (9, 96, 5), (4, 352, 6), (33, 576, 1)])
    func `every form gives the product with its decoded matrix, with equal bits on every path`(shape: (Int, Int, Int)) throws {
        let (rows, columns, tokens) = shape
        let x = random(tokens * columns, "x")
        for (name, matrix) in try weightForms(random(rows * columns, "weights"), rows, columns) {
            let weights = matrix.decoded()
            var expected = [Double](repeating: 0, count: tokens * rows)
            for token in 0..<tokens {
                for row in 0..<rows {
                    for k in 0..<columns {
                        expected[token * rows + row] += Double(weights[row * columns + k]) * Double(x[token * columns + k])
                    }
                }
            }
            let first = product(matrix, x, rows: 0..<rows, path: .scalar)
            #expect(Closeness(first.map(Double.init), expected).isWithin(norm: 1e-6), "\(name)")
            for path in KernelPath.supported {
                let values = product(matrix, x, rows: 0..<rows, path: path)
                #expect(values.map(\.bitPattern) == first.map(\.bitPattern), "\(name) \(path)")
            }
        }
    }

    @Test func `a token's values do not depend on the tokens and rows beside it`() throws {
        let (rows, columns, tokens) = (24, 224, 7)
        let x = random(tokens * columns, "x")
        for (name, matrix) in try weightForms(random(rows * columns, "weights"), rows, columns) {
            let all = product(matrix, x, rows: 0..<rows)
            for token in 0..<tokens {
                let own = Array(x[token * columns..<(token + 1) * columns])
                let parts = [0..<5, 5..<6, 6..<24].flatMap { product(matrix, own, rows: $0) }
                #expect(parts.map(\.bitPattern) == all[token * rows..<(token + 1) * rows].map(\.bitPattern), "\(name)")
            }
            var whole = [Float](repeating: .nan, count: tokens * rows)
            x.withUnsafeBufferPointer { x in
                let few = FewTokens(x.baseAddress!, count: tokens, columns: columns, for: [matrix])
                whole.withUnsafeMutableBufferPointer { matrix.multiply(few, into: $0.baseAddress!, lead: rows) }
            }
            #expect(whole.map(\.bitPattern) == all.map(\.bitPattern), "\(name)")
        }
    }

    @Test(arguments: [1, 6, 16, 40, 64, 130])
    func `weighed rows are those of the definition`(columns: Int) {
        let (rows, tokens, stride) = (9, 6, columns + 3)
        let matrix = random(rows * stride, "matrix")
        let weights = random(tokens * rows, "weights")
        var reference: [Float]?
        for path in KernelPath.supported {
            var sums = [Float](repeating: .nan, count: tokens * columns)
            tributary_weigh_rows(path.rawValue, matrix, stride, rows, columns, weights, rows, tokens, &sums, columns)
            for token in 0..<tokens {
                for column in 0..<columns {
                    let exact = (0..<rows).reduce(0.0) {
                        $0 + Double(weights[token * rows + $1]) * Double(matrix[$1 * stride + column])
                    }
                    #expect(abs(Double(sums[token * columns + column]) - exact) < 1e-5)
                }
            }
            if let reference { #expect(sums.map(\.bitPattern) == reference.map(\.bitPattern)) } else { reference = sums }
        }
    }

    @Test(arguments: [WeightForm.none, .nf4, .int8])
    func `decoding does not depend on the number of threads, nor on how a prompt is cut`(form: WeightForm) throws {
        let tiny = TinyModel(hidden: 32, intermediate: 64, heads: 4, keyValueHeads: 2, headSize: 8, biases: true)
        let model = try tiny.load(form)
        let specification = try AdapterSpecification(
            method: .loraSB, maps: model.linearMaps, rank: 3, alpha: 3, rankStabilized: false)
        let adapted = try AdaptedModel(model: model, weights: randomWeights(specification, correctionRank: 2))
        let batch = tiny.batch([17])
        let all = try adapted.logits(batch)
        func decoded(_ sizes: [Int]) throws -> [Float] {
            let decoder = adapted.makeDecoder()
            var (logits, start) = ([Float](), 0)
            for size in sizes {
                logits = try decoder.prefill(Array(batch.tokens[start..<start + size]))
                start += size
            }
            return logits
        }
        let single = try decoded([Int](repeating: 1, count: 17))
        #expect(Closeness(single, all[(16 * tiny.vocabulary)...]).isWithin(ofLargest: 1e-5))
        let limited = try Parallel.limited(toThreads: 1) { try decoded([Int](repeating: 1, count: 17)) }
        #expect(limited.map(\.bitPattern) == single.map(\.bitPattern))
        #expect(try decoded([4, 7, 2, 1, 3]).map(\.bitPattern) == single.map(\.bitPattern))
        #expect(Closeness(try decoded([9, 7, 1]), single).isWithin(ofLargest: 1e-5))
    }
}
