using System;
using System.IO;
using System.Text;
using Microsoft.Build.Framework;
using Microsoft.Build.Utilities;

/// <summary>
/// Copies a shared object (ELF64, little-endian) and marks one symbol version that it needs as weak, so that the loader
/// accepts a library that does not define that version. Only right where no symbol of that version is ever called.
/// </summary>
/// <remarks>
/// The needs are a list of Elf64_Verneed records, one per library, each with a list of Elf64_Vernaux records, one per
/// version; both chain by relative offsets (System V ABI, "Symbol Versioning").
/// </remarks>
public sealed class WeakenSymbolVersion : Task
{
    private const uint VersionNeedSection = 0x6ffffffe; // SHT_GNU_verneed
    private const ushort WeakFlag = 0x2;                // VER_FLG_WEAK

    /// <summary>The shared object to read; it is never written.</summary>
    [Required]
    public string Source { get; set; }

    /// <summary>The file to write.</summary>
    [Required]
    public string Destination { get; set; }

    /// <summary>The version, for example GLIBCXX_3.4.32. A file that does not need it is copied as it is.</summary>
    [Required]
    public string Version { get; set; }

    public override bool Execute()
    {
        byte[] image = File.ReadAllBytes(Source);
        try
        {
            Weaken(image);
        }
        catch (Exception exception) when (exception is InvalidDataException || exception is ArgumentException || exception is OverflowException)
        {
            Log.LogError("{0}: not a shared object that can be read (ELF64, little-endian): {1}", Source, exception.Message);
            return false;
        }

        // A new file under a temporary name, then renamed: whoever has the old one mapped keeps it.
        Directory.CreateDirectory(Path.GetDirectoryName(Path.GetFullPath(Destination)));
        string temporary = Destination + "." + Guid.NewGuid().ToString("N");
        File.WriteAllBytes(temporary, image);
        File.Delete(Destination);
        File.Move(temporary, Destination);
        return true;
    }

    private void Weaken(byte[] image)
    {
        bool isElf64 = image.Length >= 64 && image[0] == 0x7f && image[1] == 'E' && image[2] == 'L' && image[3] == 'F'
            && image[4] == 2 && image[5] == 1;
        if (!isElf64)
        {
            throw new InvalidDataException("wrong file header");
        }

        int sections = Offset(image, 0x28);
        int sectionSize = BitConverter.ToUInt16(image, 0x3a);
        int sectionCount = BitConverter.ToUInt16(image, 0x3c);
        for (int index = 0; index < sectionCount; index++)
        {
            int section = checked(sections + index * sectionSize);
            if (BitConverter.ToUInt32(image, section + 4) != VersionNeedSection)
            {
                continue;
            }

            int names = checked(sections + (int)BitConverter.ToUInt32(image, section + 0x28) * sectionSize); // sh_link
            WeakenNeeds(image, Offset(image, section + 0x18), Offset(image, names + 0x18));
        }
    }

    private void WeakenNeeds(byte[] image, int need, int names)
    {
        for (int next = -1; next != 0; need = checked(need + next))
        {
            int version = checked(need + (int)BitConverter.ToUInt32(image, need + 8)); // vn_aux
            for (int nextVersion = -1; nextVersion != 0; version = checked(version + nextVersion))
            {
                if (NameIs(image, checked(names + (int)BitConverter.ToUInt32(image, version + 8)))) // vna_name
                {
                    image[version + 4] |= (byte)WeakFlag; // vna_flags
                }

                nextVersion = (int)BitConverter.ToUInt32(image, version + 12); // vna_next
            }

            next = (int)BitConverter.ToUInt32(image, need + 12); // vn_next
        }
    }

    private bool NameIs(byte[] image, int start)
    {
        byte[] name = Encoding.ASCII.GetBytes(Version + "\0");
        for (int i = 0; i < name.Length; i++)
        {
            if (image[start + i] != name[i])
            {
                return false;
            }
        }

        return true;
    }

    private static int Offset(byte[] image, int position) => checked((int)BitConverter.ToUInt64(image, position));
}
