using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Mustafar.Native;

namespace Mustafar.Tests.Bindings;

/// <summary>The generated structs, enums and constants against what the library reports of its own.</summary>
[TestFixture]
internal sealed class AbiTableTests
{
    private sealed record Entry(AbiKind Kind, string Type, string Name, int Size, int Alignment, int Value);

    private static readonly IReadOnlyList<Entry> Library = ReadTable();

    private static IEnumerable<Type> Bound => typeof(NativeMethods).Assembly.GetTypes()
        .Where(type => type.Namespace == typeof(NativeMethods).Namespace && !type.IsNested);

    private static IEnumerable<Type> Structs =>
        Bound.Where(type => type.IsValueType && !type.IsEnum && type.Name.StartsWith("Native", StringComparison.Ordinal));

    private static IEnumerable<Type> Enums => Bound.Where(type => type.IsEnum);

    [Test]
    public void Structs_have_the_librarys_sizes_and_alignments() => Assert.That(
        Structs.Select(type => (type.Name["Native".Length..], SizeOf(type), AlignmentOf(type))),
        Is.EquivalentTo(Library.Where(entry => entry.Kind == AbiKind.Struct)
            .Select(entry => (Managed(entry.Type), entry.Size, entry.Alignment))));

    [Test]
    public void Fields_have_the_librarys_order_offsets_and_sizes() => Assert.That(
        Structs.SelectMany(type => type.GetFields().Select(field => (
            Type: type.Name["Native".Length..], field.Name, Offset: (int)Marshal.OffsetOf(type, field.Name), Size: SizeOf(field.FieldType)))),
        Is.EquivalentTo(Library.Where(entry => entry.Kind == AbiKind.Field)
            .Select(entry => (Managed(entry.Type), Managed(entry.Name), entry.Value, entry.Size))));

    [Test]
    public void Enumerators_have_the_librarys_values()
    {
        Assert.That(
            Enums.SelectMany(type => Enum.GetNames(type).Select(name => (type.Name, name, (int)Enum.Parse(type, name)))),
            Is.EquivalentTo(Library.Where(entry => entry.Kind == AbiKind.Enumerator && entry.Type.Length > 0)
                .Select(entry => (Managed(entry.Type), Managed(entry.Name["mustafar_".Length..][(entry.Type.Length - "mustafar_".Length + 1)..]), entry.Value))));
        Assert.That(Enums.Select(SizeOf), Has.All.EqualTo(sizeof(int)));
        Assert.That(Library.Where(entry => entry.Kind == AbiKind.Enumerator).Select(entry => entry.Size), Has.All.EqualTo(sizeof(int)));
    }

    [Test]
    public void Constants_have_the_librarys_values() => Assert.That(
        typeof(NativeConstants).GetFields(BindingFlags.Static | BindingFlags.NonPublic)
            .Select(field => (field.Name, (int)field.GetRawConstantValue()!)),
        Is.EquivalentTo(Library.Where(entry => entry.Kind == AbiKind.Enumerator && entry.Type.Length == 0)
            .Select(entry => (Managed(entry.Name), entry.Value))));

    [Test]
    public unsafe void No_place_for_the_count_gives_no_table() => Assert.That((nint)NativeMethods.AbiTable(null), Is.EqualTo((nint)0));

    private static unsafe Entry[] ReadTable()
    {
        int count;
        NativeAbiEntry* table = NativeMethods.AbiTable(&count);
        var entries = new Entry[count];
        for (int i = 0; i < count; i++)
        {
            entries[i] = new Entry(
                (AbiKind)table[i].Kind, Text(table[i].Type), Text(table[i].Name), table[i].Size, table[i].Alignment, table[i].Value);
        }

        return entries;
    }

    private static unsafe string Text(byte* text) => Marshal.PtrToStringUTF8((nint)text)?.ToLowerInvariant() ?? "";

    // The generator's rule: words in one case, without the library's prefix.
    private static string Managed(string name) => string.Concat(
        (name.StartsWith("mustafar_", StringComparison.Ordinal) ? name["mustafar_".Length..] : name).Split('_')
        .Select(word => word == "dtype" ? "DType" : char.ToUpperInvariant(word[0]) + word[1..]));

    private static int SizeOf(Type type) => type.IsPointer ? IntPtr.Size : type.IsEnum
        ? SizeOf(Enum.GetUnderlyingType(type))
        : Call<int>(nameof(Unsafe.SizeOf), typeof(Unsafe), type);

    // Of struct { byte first; T second; }.
    private static int AlignmentOf(Type type) => Call<int>(nameof(Alignment), typeof(AbiTableTests), type);

    private static int Alignment<T>()
        where T : unmanaged => Unsafe.SizeOf<Padded<T>>() - Unsafe.SizeOf<T>();

    private static TResult Call<TResult>(string method, Type owner, Type argument) =>
        (TResult)owner.GetMethod(method, BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic, [])!
            .MakeGenericMethod(argument).Invoke(null, null)!;

    [StructLayout(LayoutKind.Sequential)]
    private struct Padded<T>
        where T : unmanaged
    {
        public byte First;
        public T Second;
    }
}
