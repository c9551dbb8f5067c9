using System.Text;

namespace Mustafar.Models.Tokenizer;

/// <summary>The merges of a tokenizer.model, which lists none: any two pieces that make a third, ranked by its score.</summary>
internal static class SentencePieceMerges
{
    /// <summary>Makes the merger of a text.</summary>
    /// <param name="file">The tokenizer.model.</param>
    /// <param name="byteIds">The ids of all bytes.</param>
    public static CharacterMerger Make(SentencePieceModelFile file, int[] byteIds)
    {
        // A character that is not a piece by itself can still be part of one.
        Dictionary<Rune, int> unlisted = [];
        foreach (Rune rune in file.Texts.Keys.SelectMany(text => text.EnumerateRunes()))
        {
            if (!file.Texts.ContainsKey(rune.ToString()))
            {
                unlisted.TryAdd(rune, file.Vocabulary.Count + unlisted.Count);
            }
        }

        float[] scores = [.. file.Texts.Values.Select(piece => piece.Score).Distinct().OrderDescending()];
        Dictionary<float, int> rankOf = scores.Select((score, rank) => (score, rank)).ToDictionary(item => item.score, item => item.rank);
        Dictionary<(int, int), (int, int)> merges = [];
        foreach ((string text, (int id, float score)) in file.Texts)
        {
            for (int i = 1; i < text.Length; i++)
            {
                if (!char.IsLowSurrogate(text[i]) && Find(text[..i]) is int left && Find(text[i..]) is int right)
                {
                    merges[(left, right)] = (rankOf[score], id);
                }
            }
        }

        return new CharacterMerger(
            file.Texts.Select(piece => KeyValuePair.Create(piece.Key, piece.Value.Id)), unlisted, byteIds, new BytePairMerger(merges), new UnknownToken(null, IsFused: false));

        int? Find(string text) => file.Texts.TryGetValue(text, out (int Id, float Score) piece) ? piece.Id
            : Rune.TryGetRuneAt(text, 0, out Rune rune) && rune.Utf16SequenceLength == text.Length ? unlisted[rune]
            : null;
    }
}
