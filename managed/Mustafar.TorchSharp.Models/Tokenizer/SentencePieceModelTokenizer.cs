using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>SentencePiece's BPE with byte fallback, as in the tokenizer.model of Llama 2 and Mistral.</summary>
/// <remarks>
/// <see cref="SentencePieceConfig"/> has the additions of other files: tokens, whether beginning and end tokens are added to a text, and
/// whether a space is put before each part between added tokens ("legacy", the default) or only before the whole text.
/// </remarks>
internal sealed class SentencePieceModelTokenizer : TextTokenizer
{
    private readonly CharacterMerger _merger;
    private readonly bool _spaceInFront;
    private readonly bool _spaceInFrontOfParts;

    private SentencePieceModelTokenizer(
        SentencePieceModelFile file,
        int[] byteIds,
        IReadOnlyList<int> prefix,
        IReadOnlyList<int> suffix,
        SentencePieceConfig config)
        : base([.. file.Controls, .. config.AddedTokens], ByteFallback.Bytes(file.Vocabulary, byteIds), prefix, suffix)
    {
        _merger = SentencePieceMerges.Make(file, byteIds);
        _spaceInFront = file.AddsSpaceInFront;
        _spaceInFrontOfParts = file.AddsSpaceInFront && config.IsLegacy;
    }

    public override bool DropsFirstSpace => _spaceInFront;

    /// <summary>Reads a tokenizer.model.</summary>
    /// <exception cref="CheckpointException">It, or a file next to it, is damaged.</exception>
    /// <exception cref="UnsupportedModelException">It is of a kind that is not implemented.</exception>
    public static SentencePieceModelTokenizer Load(string path)
    {
        byte[] content = File.ReadAllBytes(path);
        LfsPointer.ThrowIfPointer(content, path);
        SentencePieceModelFile file = SentencePieceModelFile.Read(content, path);
        SentencePieceConfig config = SentencePieceConfig.Read(Path.GetDirectoryName(path) ?? "", file);
        int[] byteIds = ByteFallback.RequireIds(file.Vocabulary, path);
        return new SentencePieceModelTokenizer(
            file,
            byteIds,
            Frame(config.Begins, file.BeginningId, file, path),
            Frame(config.Ends, file.EndId, file, path),
            config);
    }

    private protected override void EncodePlain(
        string text, bool isFirst, bool findsNormalized, List<int> ids, CancellationToken cancellationToken)
    {
        string spaced = text.Replace(' ', ByteFallback.Space);
        bool adds = isFirst ? _spaceInFront : _spaceInFrontOfParts;
        _merger.Encode(adds ? ByteFallback.Space + spaced : spaced, ids, cancellationToken);
    }

    private static int[] Frame(bool added, int id, SentencePieceModelFile file, string path) =>
        !added || id < 0 ? []
        : file.Controls.Any(token => token.Id == id) ? [id]
        : throw new CheckpointException($"expected a control piece that begins or ends a text, but {id} is not one.", path);
}
