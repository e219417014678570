/// A codec as text: what plans write, and what they cannot.

import FoundationEssentials
import Primitives
import Testing
import UpdateCodec

@Suite struct UpdateCodecTests {
    @Test func aTextIsReadAndWrittenInOneWay() throws {
        let texts = [
            "f32": "f32", "bf16": "bf16", "int8": "int8", "topk:0.05": "topk:0.05", "topk:1.0": "topk:1",
            "topk:5e-2": "topk:0.05",
            "compeft:0.1": "compeft:0.1", "compeft:0.10:global": "compeft:0.1:global",
            "compeft:.5:sigma=1": "compeft:0.5:sigma=1",
            "compeft:0.2:global:sigma=2.50": "compeft:0.2:global:sigma=2.5", "topk:0.00001": "topk:1e-05",
        ]
        for (text, canonical) in texts {
            let codec = try UpdateCodec(parsing: text)
            #expect(codec.description == canonical)
            #expect(try UpdateCodec(parsing: canonical) == codec)
            let json = try JSONEncoder().encode([codec])
            #expect(try JSONDecoder().decode([UpdateCodec].self, from: json) == [codec])
        }
        for codec in Samples.codecs { #expect(try UpdateCodec(parsing: codec.description) == codec) }
        #expect(
            try UpdateCodec(parsing: "compeft:0.2:global:sigma=2.5")
                == .compeft(density: 0.2, scope: .allTensors, scale: .deviations(2.5)))
        #expect(UpdateCodec.topK(0.1) != .topK(0.2))
    }

    @Test(arguments: [
        "", ":", "f16", "F32", "f32:", "f32:1", "bf16:0.1", "int8:8", "topk", "topk:", "topk:0", "topk:-0.1", "topk:1.5",
        "topk:nan", "topk:inf",
        "topk:0x1p-2", "topk:0.1:global", "compeft", "compeft:global", "compeft:0", "compeft:0.1:sigma", "compeft:0.1:sigma=",
        "compeft:0.1:sigma=0", "compeft:0.1:sigma=-1", "compeft:0.1:sigma=1:global", "compeft:0.1:global:global", "compeft:0.1:",
        "compeft:0.1 ", "compeft:0,1", "topk:10%",
    ])
    func whatIsNoCodecIsRefusedWithWhatIsPossible(_ text: String) throws {
        do {
            _ = try UpdateCodec(parsing: text)
            Issue.record("\"\(text)\" was taken")
        } catch {
            #expect(error.status == .usage)
            #expect(error.message.count > 30 && !error.message.contains("\n"), "\(error.message)")
        }
        #expect(throws: (any Error).self) { try JSONDecoder().decode([UpdateCodec].self, from: Data("[\"\(text)\"]".utf8)) }
    }

    @Test func whatACodecIsGoodFor() {
        for codec in Samples.codecs {
            let hasSigma = codec.description.contains("sigma")
            #expect(codec.isExact == (codec == .float32))
            #expect(codec.usesRandomness == (codec == .int8))
            #expect(codec.allowsErrorFeedback == (codec != .float32 && !hasSigma))
        }
    }

    @Test func identifiersAreThoseOfTheProtocol() {
        let identifiers = Samples.codecs.reduce(into: [String: UInt8]()) { $0[$1.name] = $1.identifier }
        #expect(identifiers == ["f32": 0, "bf16": 1, "int8": 2, "topk": 3, "compeft": 4])
        #expect(UpdateCodec.forms.count == identifiers.count)
    }
}
