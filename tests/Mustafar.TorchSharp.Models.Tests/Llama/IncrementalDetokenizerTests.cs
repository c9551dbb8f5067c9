using System.Text;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class IncrementalDetokenizerTests
{
    private static readonly TextTokenizer s_tokenizer = TextTokenizer.Load(Golden.Checkpoint);

    // Each byte as a token of its own is the worst case of a character spread over tokens.
    [TestCase("naïve café — 漢字 😀 end")]
    [TestCase("👩‍👩‍👧‍👦")]
    [TestCase("plain")]
    public void NeverSplitsACharacter(string text)
    {
        IncrementalDetokenizer detokenizer = new(s_tokenizer);
        List<string> parts = [];
        foreach (byte value in Encoding.UTF8.GetBytes(text))
        {
            parts.Add(detokenizer.Append(IdOf(value)));
        }

        parts.Add(detokenizer.Finish());
        using (Assert.EnterMultipleScope())
        {
            Assert.That(string.Concat(parts), Is.EqualTo(text));
            Assert.That(parts.Where(part => part.Length > 0), Has.Exactly(text.EnumerateRunes().Count()).Items, "one part per character");
            Assert.That(parts.SelectMany(part => part.EnumerateRunes()), Has.None.EqualTo(Rune.ReplacementChar));
        }
    }

    [Test]
    public void GivesTheTextOfRealTokens()
    {
        string text = "x = '漢字 😀'  # naïve\n";
        IncrementalDetokenizer detokenizer = new(s_tokenizer);
        string streamed = string.Concat(s_tokenizer.Encode(text).Select(detokenizer.Append)) + detokenizer.Finish();
        Assert.That(streamed, Is.EqualTo(text));
    }

    [Test]
    public void ShowsAnUnfinishedCharacterAtTheEnd()
    {
        IncrementalDetokenizer detokenizer = new(s_tokenizer);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(detokenizer.Append(IdOf(0xF0)) + detokenizer.Append(IdOf(0x9F)), Is.Empty);
            Assert.That(detokenizer.Finish(), Is.EqualTo("\uFFFD"));
            Assert.That(detokenizer.Append(IdOf((byte)'a')) + detokenizer.Finish(), Is.EqualTo("a"), "the next text starts afresh");
        }
    }

    [Test]
    public void ReplacesBytesThatAreNotUtf8()
    {
        IncrementalDetokenizer detokenizer = new(s_tokenizer);
        string streamed = detokenizer.Append(IdOf(0xC3)) + detokenizer.Append(IdOf((byte)'a')) + detokenizer.Finish();
        Assert.That(streamed, Is.EqualTo("\uFFFDa"));
    }

    [Test]
    public void LeavesOutSpecialTokensOnRequest()
    {
        using (Assert.EnterMultipleScope())
        {
            Assert.That(new IncrementalDetokenizer(s_tokenizer).Append(8188), Is.Empty);
            Assert.That(new IncrementalDetokenizer(s_tokenizer, skipSpecialTokens: false).Append(8188), Is.EqualTo("<|eot_id|>"));
        }
    }

    // The vocabulary holds a token for every byte.
    private static int IdOf(byte value) => Enumerable.Range(0, 256).First(id => s_tokenizer.BytesOf(id) is [byte only] && only == value);
}
