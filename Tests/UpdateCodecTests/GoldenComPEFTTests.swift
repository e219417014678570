/// ComPEFT's kept positions, signs, scales and sizes against NumPy's.

import Adapters
import CKernels
import Checkpoints
import FoundationEssentials
import Primitives
import TestSupport
import Testing
import UpdateCodec

@Suite struct GoldenComPEFTTests {
    @Test func everyCaseIsCodedAsNumPyCountsIt() throws {
        let json = try Data(contentsOf: URL(filePath: Golden.path("federated/federated.json")))
        let cases = try #require(try JSONValue(parsing: json)["compeft"]?.elements)
        let file = try SafetensorsFile(path: Golden.path("federated/compeft.safetensors"))
        #expect(!cases.isEmpty)
        for row in cases {
            let name = try #require(row["case"]?.text)
            let (count, kept) = (try #require(row["d"]?.int), try #require(row["n"]?.int))
            let vector = try #require(file.tensors["\(name).task_vector"]).floats()
            let positions = try #require(file.tensors["\(name).kept"]).integers()
            let signs = try #require(file.tensors["\(name).sign"]).integers()
            // The density is part of the name, in per cent: d1000.k5.
            let percent = try #require(name.split(separator: ".k").last.flatMap { Double($0) })
            let layout = Samples.layout([count])
            let state = AdapterState(layout: layout, values: vector)

            let bytes = Samples.encode(state, .compeft(density: percent / 100))
            let decoded = try EncodedState.decode(bytes, layout: layout, codecs: [.compeft(density: percent / 100)]).values
            #expect(decoded.indices.filter { decoded[$0] != 0 } == positions, "\(name)")
            #expect(positions.count == kept)
            #expect(positions.map { decoded[$0] < 0 ? -1 : 1 } == signs, "\(name)")
            let mean = try #require(row["mean_kept_magnitude"]?.double)
            #expect(decoded.allSatisfy { $0 == 0 || abs($0) == Float(mean) }, "\(name)")

            let deviations = try Samples.roundTrip(state, .compeft(density: percent / 100, scale: .deviations(1))).values
            let sigma = try #require(row["sigma_population"]?.double)
            #expect(positions.allSatisfy { abs(Double(abs(deviations[$0])) / sigma - 1) < 1e-7 }, "\(name)")

            var (parameter, power): (UInt32, UInt32) = (0, 0)
            var powerBits = 0
            let bits = tributary_golomb_choose(positions.map(UInt32.init), kept, &parameter, &power, &powerBits)
            #expect(powerBits + kept == row["rice_bits_best"]?.int, "\(name)")
            #expect(UInt32(1) << UInt32(row["rice_parameter_best"]?.int ?? 40) == power, "\(name)")
            #expect(bits <= powerBits)
            #expect(Samples.payload(bytes).count == 16 + (bits + kept + 7) / 8, "\(name)")
            let entropy = try #require(row["entropy_bits"]?.double)
            if count >= 16_384 { #expect(Double(bits + kept) < 1.02 * entropy, "\(name): \(Double(bits + kept) / entropy)") }
        }
    }
}
